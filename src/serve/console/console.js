// The console: sections that each read for themselves and fail alone, and the stream that keeps them current.

import { listen, read, readOpen, session } from './api.js';
import { INTERVENTION, LESSON, PROPOSAL, buttons } from './actions.js';
import * as views from './views.js';

const { byId, el } = views;
const MOST = 50; // records a list holds
const streamed = { live: false, why: '' };
let waking;

/** A part of the page that is read every so often. */
class Section {
  constructor(name, { every, slow, get, show }) {
    Object.assign(this, { name, every, slow: slow || every, get, show, due: 0, readAt: null, trouble: null, turn: 0, busy: false, news: [] });
    this.node = byId(name);
    this.age = this.node.querySelector('.age');
  }

  soon(wait = 0) {
    this.due = Math.min(this.due, Date.now() + wait);
    clearTimeout(waking);
    waking = setTimeout(tick, Math.max(0, Math.min(...sections.map((section) => section.due)) - Date.now()));
  }

  async load() {
    this.turn += 1;
    const turn = this.turn;
    [this.busy, this.news] = [true, []];
    this.due = Date.now() + (streamed.live ? this.slow : this.every);
    try {
      const got = await this.get();
      if (turn !== this.turn) return;
      this.show(got);
      [this.readAt, this.trouble] = [Date.now(), null];
    } catch (error) {
      if (turn !== this.turn) return;
      this.trouble = error.message;
      if ([401, 403, 404].includes(error.status)) this.due = Date.now() + 60_000;
    } finally {
      if (turn === this.turn) this.busy = false;
      this.say();
    }
  }

  /** Nothing of what was there counts any more. */
  forget() {
    [this.readAt, this.trouble, this.due, this.busy] = [null, null, 0, false];
    this.turn += 1;
  }

  say() {
    const seconds = this.readAt === null ? null : (Date.now() - this.readAt) / 1000;
    const old = seconds !== null && seconds * 1000 > 3 * this.every;
    put(this.age, seconds === null ? '' : seconds < 2 ? 'just read' : `read ${views.span(seconds)} ago`);
    this.node.classList.toggle('old', this.readAt !== null && (old || Boolean(this.trouble)));
    const trouble = this.node.querySelector('.trouble');
    const kept = this.readAt === null ? '' : ` What is below is ${views.span(seconds)} old.`;
    put(trouble, this.trouble ? `Cannot be read: ${this.trouble}${kept}` : '');
    trouble.hidden = !this.trouble;
  }
}

/** A section of records, each drawn by itself, so that what a person is doing in one outlives news of another. */
class List extends Section {
  constructor(name, { path, parameters, key, draw, order, actions, what, tone, keeps, remark, ...more }) {
    super(name, { ...more, get: () => read(path, parameters), show: (page) => this.take(page) });
    Object.assign(this, { key, draw, order, actions, what, tone, remark, keeps: keeps || (() => true), items: [], total: 0, settled: new Map() });
    this.list = this.node.querySelector('.rows');
  }

  take(page) {
    const known = new Map((page.items || []).filter((record) => record && record[this.key]).map((record) => [record[this.key], record]));
    const all = [...known.values()];
    // a read may be older than what a person has just decided
    const open = all.filter((record) => this.settled.get(record[this.key]) !== JSON.stringify(record));
    this.items = open.slice(0, MOST);
    this.total = Math.max((page.total || 0) - (all.length - open.length), this.items.length);
    this.news.forEach((record) => this.place(record)); // came while this was being read
    this.render();
  }

  /** One record of the stream. True: it is news. */
  merge(record) {
    if (this.busy && this.news.length < MOST) this.news.push(record);
    const news = this.place(record);
    this.render();
    return news;
  }

  place(record) {
    const at = this.items.findIndex((known) => known[this.key] === record[this.key]);
    if (at >= 0 && (this.items[at].revision || 0) > (record.revision || 0)) return false;
    const keeps = this.keeps(record);
    if (at >= 0) this.items.splice(at, 1);
    if (keeps) this.items.unshift(record);
    this.total += (keeps ? 1 : 0) - (at >= 0 ? 1 : 0);
    if (this.order) this.items.sort((a, b) => String(b[this.order]).localeCompare(String(a[this.order])));
    this.items.length = Math.min(this.items.length, MOST);
    return at < 0 && keeps;
  }

  remove(id) {
    const before = this.items.length;
    this.items = this.items.filter((record) => record[this.key] !== id);
    this.total -= before - this.items.length;
    this.render();
  }

  forget() {
    super.forget();
    [this.items, this.total] = [[], 0];
    this.list.replaceChildren();
    put(this.node.querySelector('.count'), '');
    this.node.querySelector('.empty').hidden = true;
  }

  render() {
    const focus = document.activeElement;
    const held = focus && this.list.contains(focus) ? focus.closest('.rows > li') : null;
    const known = new Map([...this.list.children].map((item) => [item.dataset.key, item]));
    this.items.forEach((record, at) => {
      const item = known.get(String(record[this.key])) || el('li', { 'data-key': String(record[this.key]) });
      known.delete(item.dataset.key);
      if (this.list.children[at] !== item) this.list.insertBefore(item, this.list.children[at] || null);
      this.fill(item, record);
    });
    known.forEach((item) => item.remove());
    if (held) regain(focus, held, this.node);
    const count = this.total > this.items.length ? `${this.items.length} of ${this.total}` : String(this.total);
    put(this.node.querySelector('.count'), this.remark ? count + this.remark(this.items) : count);
    this.node.querySelector('.empty').hidden = this.items.length > 0;
  }

  fill(item, record) {
    const print = JSON.stringify(record);
    if (item.print === print) return;
    item.print = print;
    const open = item.querySelector('.body details[open]') !== null;
    const body = el('div', 'body', ...this.draw(record).filter(Boolean));
    if (open) body.querySelector('details')?.setAttribute('open', '');
    const actions = this.actions ? this.actions(record) : [];
    const names = actions.map((one) => one.label).join();
    if (item.names !== names || !item.firstChild) {
      item.names = names;
      const decided = (text) => this.decided(record, text);
      item.replaceChildren(body, ...(actions.length ? [buttons(actions, record, this.what(record), decided)] : []));
    } else {
      item.firstChild.replaceWith(body);
    }
    item.className = this.tone ? this.tone(record) : '';
  }

  decided(record, text) {
    const done = this.node.querySelector('.done');
    if (done) put(done, text); else announce(text);
    this.settled.set(record[this.key], JSON.stringify(record));
    if (this.settled.size > MOST) this.settled.delete(this.settled.keys().next().value);
    this.remove(record[this.key]);
    setTimeout(() => [this, lists.proposals].forEach((list) => list.soon()), 1000);
  }
}

/** Keeps the keyboard where it was: on the same control, the one of its name, or the head of the section. */
function regain(focus, item, section) {
  if (focus.isConnected) { if (document.activeElement !== focus) focus.focus({ preventScroll: true }); return; }
  const name = focus.dataset.name;
  const same = item.isConnected && name ? [...item.querySelectorAll('[data-name]')].find((node) => node.dataset.name === name) : null;
  (same || section.querySelector('h2')).focus({ preventScroll: true });
}

function put(node, text) {
  if (node.textContent !== text) node.textContent = text;
}

function announce(text) {
  put(byId('announce'), text);
}

const concern = (severity) => ({ CRITICAL: 'bad', HIGH: 'high', MEDIUM: 'warn' })[severity] || '';

const lists = {
  limits: new List('limits', {
    path: '/api/v1/limits-up', parameters: { limit: 20 }, every: 10_000, key: 'signal_id', draw: views.limit,
  }),
  alerts: new List('alerts', {
    path: '/api/v1/alerts', parameters: { status: 'open', limit: 20 }, every: 10_000, slow: 60_000, key: 'alert_id', draw: views.alert,
    order: 'last_seen', keeps: (r) => r.status !== 'RESOLVED', tone: (r) => concern(r.severity),
  }),
  interventions: new List('interventions', {
    path: '/api/v1/interventions', parameters: { limit: 20 }, every: 10_000, slow: 60_000, key: 'intervention_id', draw: views.intervention,
    order: 'created_at', actions: (r) => (r.state === 'PROPOSED' ? INTERVENTION : []), what: (r) => `${r.type} of ${r.target?.id}`,
    tone: (r) => (r.state === 'PROPOSED' ? 'warn' : ''),
  }),
  lessons: new List('lessons', {
    path: '/api/v1/lessons', parameters: { status: 'pending', limit: 20 }, every: 30_000, slow: 60_000, key: 'id', draw: views.lesson,
    order: 'created_at', keeps: (r) => r.status === 'pending', actions: () => LESSON, what: (r) => r.title, tone: (r) => concern(r.severity),
  }),
  proposals: new List('proposals', {
    path: '/api/v1/policy-proposals', parameters: { status: 'draft', limit: 20 }, every: 30_000, key: 'proposal_id', draw: views.proposal,
    actions: () => PROPOSAL, what: (r) => r.policy_id,
  }),
  panels: new List('panels', {
    path: '/api/v1/panels', parameters: { limit: 100 }, every: 60_000, key: 'panel_id', draw: (r) => [panel(r)],
    remark: views.healths,
  }),
};

const level = new Section('level', { every: 15_000, get: () => read('/api/v1/policy-level'), show: showLevel });
const sidecar = new Section('sidecar', { every: 5000, get: () => readOpen('/status.json'), show: views.status });
const sections = [level, ...Object.values(lists), sidecar];

function showLevel(p) {
  level.shown = p;
  views.level(p);
}

/** A panel that opens: its rows are read when it does. */
function panel(record) {
  const rows = el('div', 'panel-rows');
  const details = el('details', {}, el('summary', { 'data-name': record.panel_id }, ...views.panel(record).filter(Boolean)), rows);
  details.addEventListener('toggle', async () => {
    if (!details.open) { rows.replaceChildren(); return; }
    rows.replaceChildren(el('p', { class: 'muted', text: 'reading…' }));
    try {
      const page = await read(`/api/v1/panels/${encodeURIComponent(record.panel_id)}/rows`, { limit: 20 });
      const items = (page.items || []).slice(0, MOST);
      const more = page.total > items.length ? ` of ${page.total}` : '';
      rows.replaceChildren(el('p', { class: 'muted', text: `${items.length}${more} rows, read at ${new Date().toLocaleTimeString()}, from ${record.endpoint}` }),
        views.table(`Rows of ${record.panel_id}`, items));
    } catch (error) {
      rows.replaceChildren(el('p', { class: 'trouble', text: `Cannot be read: ${error.message}` }));
    }
  });
  return details;
}

// ---- the stream

const ROUTES = {
  alert: (r) => {
    if (lists.alerts.merge(r) && ['CRITICAL', 'HIGH'].includes(r.severity)) announce(`${r.severity} alert: ${views.words(r.title)}`);
  },
  intervention: (r) => { if (r.intervention_id && r.revision) lists.interventions.merge(r); },
  signal: () => lists.limits.soon(300),
  lesson: (r) => { lists.lessons.merge(r); lists.proposals.soon(1000); },
  policy_level: (r) => {
    const whose = session.tenant || level.shown?.tenant_id;
    if (r.policy && (!whose || r.tenant_id === whose)) { showLevel(r); [level.readAt, level.trouble] = [Date.now(), null]; level.say(); }
  },
  missed: () => reload(),
};

function heard(name, record) {
  const foreign = session.tenant && record.tenant_id && record.tenant_id !== session.tenant && record.tenant_id !== '*';
  if (!foreign && Object.hasOwn(ROUTES, name)) ROUTES[name](record);
}

function streamState(state, why) {
  const was = streamed.live;
  [streamed.live, streamed.why] = [state === 'live', why];
  const live = byId('live');
  live.className = 'chip ' + ({ live: 'ok', lost: 'warn' }[state] || '');
  put(live, { live: 'live', lost: 'reconnecting', begins: 'connecting' }[state] || 'not live');
  live.title = why;
  // what happened while nobody listened is read
  if (state === 'live' && !was) reload();
  if (state !== 'live') sections.forEach((section) => section.soon(section.every));
}

function reload() {
  [lists.alerts, lists.interventions, lists.limits, lists.lessons].forEach((list) => list.soon());
}

// ---- who looks, and what is asked

let stop = () => {};

function begin() {
  stop();
  sections.forEach((section) => section.forget());
  level.shown = null;
  views.level({ policy: 'UNKNOWN', tenant_id: session.tenant || '*', reasons: [], missing: [] });
  put(byId('whose'), `${session.tenant ? ': ' + session.tenant : ''}${session.token ? ' · token' : ''}`);
  tick();
  follow();
}

/** A tab that nobody sees holds no connection: browsers have six for a host. */
function follow() {
  stop();
  streamState('begins', '');
  stop = document.hidden ? () => {} : listen({ event: heard, state: streamState });
}

function tick() {
  const now = Date.now();
  for (const section of sections) {
    if (now >= section.due && !section.busy) section.load(); else section.say();
  }
  explain.say();
  views.renew();
}

const explain = new Section('explain', {
  every: 600_000, get: () => read('/api/v1/explain/' + encodeURIComponent(byId('id').value.trim()), {}, 60_000),
  show: (answer) => byId('explained').replaceChildren(...views.explained(answer).filter(Boolean)),
});

async function explainIt(id) {
  byId('id').value = id;
  explain.forget();
  byId('explained').replaceChildren(el('p', { class: 'muted', text: 'reading… the recorded steps are run again, which takes a while' }));
  explain.node.querySelector('.empty').hidden = true;
  await explain.load();
  if (explain.trouble) byId('explained').replaceChildren();
}

function followHash() {
  const [, id] = /^#explain\/(.+)$/.exec(location.hash) || [];
  if (!id) return;
  byId('explain').scrollIntoView();
  byId('h-explain').focus({ preventScroll: true });
  let plain = id;
  try { plain = decodeURIComponent(id); } catch { /* as it stands */ }
  explainIt(plain);
}

byId('ask').addEventListener('submit', (event) => {
  event.preventDefault();
  const hash = '#explain/' + encodeURIComponent(byId('id').value.trim());
  if (location.hash === hash) followHash(); else location.hash = hash;
});
byId('who').addEventListener('submit', (event) => {
  event.preventDefault();
  session.use(byId('tenant').value, byId('token').value);
  begin();
});
byId('who').addEventListener('reset', () => { session.use('', ''); setTimeout(showWho); begin(); });

function showWho() {
  byId('tenant').value = session.tenant;
  byId('token').value = session.token;
}

addEventListener('hashchange', followHash);
document.addEventListener('visibilitychange', follow);
showWho();
begin();
setInterval(tick, 1000);
followHash();
