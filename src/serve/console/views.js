// How records look. Everything from outside becomes text, never markup.

const LONGEST = 600; // characters of a text
const MOST_MEMBERS = 50;
const MOST_COLUMNS = 40;
const UNKNOWN = '—';

export const byId = (id) => document.getElementById(id);

/** An element: its class, its attributes, and what is in it. */
export function el(tag, look, ...inside) {
  const { text, ...attributes } = typeof look === 'string' ? { class: look } : look || {};
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (value !== undefined && value !== null) node.setAttribute(name, value);
  }
  if (text !== undefined) node.textContent = words(text);
  node.append(...inside.filter((part) => part !== null && part !== undefined && part !== ''));
  return node;
}

export function words(value) {
  if (value === null || value === undefined || value === '') return UNKNOWN;
  const text = typeof value === 'object' ? JSON.stringify(value) : String(value);
  return text.length > LONGEST ? text.slice(0, LONGEST) + '…' : text;
}

export function number(value) {
  if (typeof value !== 'number') return words(value);
  const digits = Math.abs(value) >= 1000 ? { maximumFractionDigits: 0 } : { maximumSignificantDigits: 4 };
  return value.toLocaleString('en', digits);
}

export function span(seconds) {
  const s = Math.max(0, Math.round(seconds));
  if (s < 90) return `${s} s`;
  if (s < 5400) return `${Math.round(s / 60)} min`;
  return s < 129_600 ? `${Math.round(s / 3600)} h` : `${Math.round(s / 86_400)} d`;
}

/** A point in time, as how long ago; renew() keeps it true. */
export function when(value) {
  const at = new Date(value);
  if (!value || Number.isNaN(at.getTime())) return el('span', { text: UNKNOWN });
  const node = el('time', { datetime: at.toISOString(), title: at.toLocaleString() });
  node.textContent = distance(at);
  return node;
}

function distance(at) {
  const seconds = (Date.now() - at) / 1000;
  if (Math.abs(seconds) < 5) return 'now';
  return seconds < 0 ? 'in ' + span(-seconds) : span(seconds) + ' ago';
}

export function renew() {
  for (const node of document.querySelectorAll('time[datetime]')) {
    const text = distance(new Date(node.dateTime));
    if (node.textContent !== text) node.textContent = text;
  }
}

const TONES = {
  bad: ['CRITICAL', 'BREACH', 'FAILED', 'TIMED_OUT', 'FILTER_BREAK', 'BROKEN', 'KILL', 'LOST'],
  high: ['HIGH', 'STOP', 'ISSUED', 'STALE', 'STALE_PANEL'],
  warn: ['MEDIUM', 'NEAR', 'PAUSE', 'PROPOSED', 'EMPTY', 'EMPTY_PANEL', 'WARNING', 'ACKNOWLEDGED', 'DRAFT'],
  ok: ['SUCCEEDED', 'HEALTHY', 'OK', 'RESOLVED', 'WON', 'ALONE'],
};

export function chip(text, tone) {
  const known = Object.entries(TONES).find(([, names]) => names.includes(String(text).toUpperCase()));
  return el('span', { class: 'chip ' + (tone || (known ? known[0] : '')), text: words(text).replaceAll('_', ' ') });
}

export function explainLink(id, what) {
  if (!id) return null;
  const name = 'explain ' + what + ' ' + words(id);
  return el('a', { href: '#explain/' + encodeURIComponent(id), 'data-name': name, 'aria-label': name, text: 'explain' });
}

const line = (look, ...inside) => el('p', look, ...inside);
const muted = (...inside) => el('span', 'muted', ...inside);
const id = (text) => el('code', { text });

function pairs(facts) {
  return Object.entries(facts).flatMap(([name, value]) => [el('dt', { text: name }), el('dd', {}, shown(value))]);
}
const shown = (value) => (value instanceof Node ? value : document.createTextNode(words(value)));

/** How much of a limit is used. */
function bar(utilization) {
  const known = typeof utilization === 'number';
  const fill = el('span', 'fill ' + (!known ? '' : utilization >= 1 ? 'bad' : utilization >= 0.8 ? 'warn' : 'ok'));
  fill.style.width = known ? `${Math.min(100, Math.max(0, utilization * 100))}%` : '0';
  return el('span', { class: 'bar', 'aria-hidden': 'true' }, fill);
}

function left(record) {
  const minutes = record.minutes_to_limit;
  if (record.utilization >= 1 || record.kind === 'BREACH') return 'limit reached';
  if (typeof minutes !== 'number') return 'no forecast';
  return minutes < 1 ? 'under a minute left' : span(minutes * 60) + ' left';
}

export function limit(r) {
  const scope = r.scope || {};
  return [
    line('title', muted(words(scope.kind)), ' ', id(scope.id), ' ', el('strong', { text: r.metric })),
    line('gauge', bar(r.utilization), el('strong', { text: typeof r.utilization === 'number' ? number(r.utilization * 100) + ' %' : UNKNOWN })),
    line('facts-line', el('span', { class: 'left', text: left(r) }), muted(`${number(r.value)} of ${number(r.limit)}`),
      muted('window ends ', when(r.window_end)), muted(words(r.policy_id)), muted(words(r.tenant_id)),
      r.mode && r.mode !== 'BLOCK' ? chip(r.mode) : null, explainLink(r.signal_id, 'signal')),
  ];
}

export function alert(r) {
  const members = Array.isArray(r.members) ? r.members : [];
  const muting = [...(r.silenced_by || []), ...(r.inhibited_by || [])].length;
  return [
    line('title', chip(r.severity), ' ', el('strong', { text: r.title })),
    r.description && r.description !== r.title ? line({ class: 'about', text: r.description }) : null,
    line('facts-line', muted(words(r.tenant_id)), muted('last seen ', when(r.last_seen)), muted('since ', when(r.first_seen)),
      muted(`${number(r.alert_count)} member${r.alert_count === 1 ? '' : 's'}`), muting ? chip('muted') : null,
      r.is_synthetic ? chip('synthetic') : null, explainLink(r.alert_id, 'alert')),
    members.length < 2 ? null : memberList(members, r.members_total),
  ];
}

function memberList(members, total) {
  const some = members.slice(0, MOST_MEMBERS);
  const more = (total || members.length) - some.length;
  return el('details', {}, el('summary', { text: `members of this alert (${total || members.length})`, 'data-name': 'members' }),
    el('ul', 'plain', ...some.map((m) => el('li', {}, id(m), ' ', explainLink(m, 'member'))),
      more > 0 ? el('li', { class: 'muted', text: `${more} more` }) : null));
}

export function intervention(r) {
  const target = r.target || {};
  const waits = ['PROPOSED', 'ISSUED', 'ACKNOWLEDGED'].includes(r.state);
  return [
    line('title', chip(r.type), ' ', muted(words(target.kind)), ' ', id(target.id), ' ', chip(r.state)),
    line({ class: 'about', text: r.reason }),
    line('facts-line', muted(words(r.tenant_id)), muted(when(r.created_at)), muted(words(r.initiated_by)),
      waits && r.deadline ? muted('deadline ', when(r.deadline)) : null, r.approved_by ? muted('approved by ' + words(r.approved_by)) : null,
      explainLink(r.intervention_id, 'intervention'), r.signal_id ? muted('its signal: ', explainLink(r.signal_id, 'signal')) : null),
  ];
}

export function lesson(r) {
  return [
    line('title', chip(r.severity), ' ', el('strong', { text: r.title })),
    line({ class: 'about', text: r.description }),
    r.proposed_action ? line('about', muted('Proposed: '), words(r.proposed_action)) : null,
    line('facts-line', muted(words(r.lesson_type).replaceAll('_', ' ')), muted(words(r.tenant_id)), muted(when(r.created_at)),
      r.source_run_id ? muted('run ', id(r.source_run_id)) : null,
      r.source_event_type === 'signal' ? explainLink(r.source_event_id, 'signal') : null),
  ];
}

export function proposal(r) {
  return [
    line('title', el('strong', { text: r.policy_id }), ' ', muted(`version ${words(r.draft_version)}`), ' ', chip(r.status)),
    line({ class: 'about', text: r.rationale }),
    line('facts-line', muted(r.tenant_id === '*' ? 'all tenants' : words(r.tenant_id)), muted(when(r.created_at)),
      muted('by ' + words(r.created_by)), r.current_version ? muted(`replaces version ${r.current_version}`) : muted('new')),
  ];
}

export function panel(r) {
  return [
    el('code', { text: r.panel_id }), el('span', { class: 'question', text: r.question }), r.alert_enabled ? muted('alerting') : null,
    muted(`${number(r.row_count)} row${r.row_count === 1 ? '' : 's'}, `, when(r.last_checked_at)), chip(r.health),
  ];
}

/** How many panels are not well. */
export function healths(items) {
  const ill = items.filter((r) => !TONES.ok.includes(String(r.health).toUpperCase())).length;
  return items.length ? `, ${ill || 'all'} ${ill ? 'not ' : ''}healthy` : '';
}

/** Rows as a table in a box of its own. */
export function table(caption, items) {
  if (!items.length) return line({ class: 'empty', text: 'No rows. That is no error: a panel may be empty.' });
  const columns = [...new Set(items.flatMap((item) => Object.keys(item)))].slice(0, MOST_COLUMNS);
  const look = (name) => (items.every((item) => typeof item[name] === 'number') ? 'n' : null);
  const head = el('tr', {}, ...columns.map((name) => el('th', { scope: 'col', class: look(name), text: name.replaceAll('_', ' ') })));
  const body = items.map((item) => el('tr', {}, ...columns.map((name) => cell(item[name]))));
  return el('div', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': caption },
    el('table', {}, el('caption', { class: 'unseen', text: caption }), el('thead', {}, head), el('tbody', {}, ...body)));
}

function cell(value) {
  if (typeof value === 'number') return el('td', { class: 'n', text: number(value) });
  const time = typeof value === 'string' && /^\d{4}-\d\d-\d\dT[\d:.]+Z$/.test(value);
  return el('td', {}, time ? when(value) : shown(value));
}

const risk = (inputs) => words(inputs && inputs.forecast_risk).toUpperCase();

export function level(p) {
  const name = ['RED', 'YELLOW', 'GREEN'].includes(p.policy) ? p.policy : 'UNKNOWN';
  byId('badge').className = 'badge ' + name;
  byId('badge-level').textContent = name;
  byId('badge-of').textContent = p.tenant_id === '*' ? 'all tenants' : words(p.tenant_id);
  byId('level-at').replaceChildren(p.evaluated_at ? when(p.evaluated_at) : 'never');
  byId('level-trust').textContent = !p.inputs ? 'unknown' : p.inputs.trust_locked ? 'LOCKED' : 'unlocked';
  byId('level-risk').textContent = p.inputs ? risk(p.inputs) : 'unknown';
  const missing = (p.missing || []).length ? ['missing: ' + p.missing.join(', ').replaceAll('_', ' ')] : [];
  byId('level-why').replaceChildren(...[...(p.reasons || []), ...missing].map((text) => el('li', { text })));
  const facts = Object.entries({ ...p.inputs, ...p.thresholds }).map(([k, v]) => [k.replaceAll('_', ' '), number(v)]);
  byId('level-inputs').replaceChildren(...pairs(Object.fromEntries(facts)));
  document.title = name === 'UNKNOWN' ? 'runwarden' : name + ' · runwarden';
}

export function status(s) {
  const ready = byId('ready');
  ready.className = 'chip ' + (s.ready ? 'ok' : 'bad');
  const said = s.ready ? 'ready' : s.alive ? 'not ready' : 'stalled';
  if (ready.textContent !== said) ready.textContent = said;
  const reasons = Object.entries(s.reasons).map(([code, why]) => `${code}: ${why}`);
  byId('reasons').replaceChildren(...(reasons.length ? reasons : ['nothing is missing']).map((text) => el('li', { text })));
  const counts = Object.entries(s.counts).map(([name, n]) => [name.replaceAll('_', ' '), n.toLocaleString('en')]);
  byId('counts').replaceChildren(...pairs(Object.fromEntries(counts)));
  const owned = s.partitions.map((p) => el('tr', {}, el('td', { text: p.partition }),
    el('td', { class: 'n', text: p.lag === null ? 'unknown' : p.lag.toLocaleString('en') }), el('td', { text: p.restoring ? 'restoring' : 'live' })));
  byId('partitions').replaceChildren(...(owned.length ? owned : [el('tr', {}, el('td', { colspan: '3', text: 'none' }))]));
  byId('about').textContent = `runwarden ${s.version} (${s.revision}), started ${s.started_at}, up ${span(s.uptime_seconds)}, `
    + `configuration ${s.config_hash || 'not loaded'}, roles ${s.roles.join(' ')}`;
}

/** The answer of explain. */
export function explained(x) {
  const [d, s, again] = [x.decision || {}, x.signal, x.again || {}];
  const target = d.target || d.subject || d.scope || {};
  const verdict = again.same === true ? 'the same comes out again' : again.same === false ? 'it comes out otherwise' : 'not run again';
  return [
    line('title', chip(x.what), ' ', d.type || d.kind || d.status ? chip(d.type || d.kind || d.status) : null, ' ',
      target.kind ? muted(words(target.kind)) : null, ' ', target.id ? id(target.id) : null),
    d.reason || d.title ? line({ class: 'about', text: d.reason || d.title }) : null,
    s ? el('h3', { text: 'Signal and window' }) : null, ...(s ? [signal(s)] : []),
    el('h3', { text: 'Policies considered' }), considered(x.considered || [], s),
    x.sql ? el('h3', { text: 'SQL' }) : null, x.sql ? code(x.sql, 'The SQL of the metric') : null,
    el('h3', { text: `Events (${x.events ? number(x.events.count) : 'unknown'})` }),
    x.events && x.events.shown.length ? table('Events within the window', x.events.shown.slice(0, 50)) : line({ class: 'muted', text: 'none are shown' }),
    el('h3', { text: 'Run again' }),
    line({ text: again.why ? `${verdict}: ${again.why}` : again.steps ? `${verdict}: ${number(again.steps)} steps, ${number(again.records)} records` : verdict }),
    el('details', {}, el('summary', { text: 'The whole answer as JSON' }), code(JSON.stringify(x, null, 1).slice(0, 65_536), 'The whole answer as JSON')),
  ];
}

function signal(s) {
  const scope = s.scope || {};
  return el('dl', 'facts', ...pairs({
    'what': `${words(s.kind)} of ${words(s.metric)}`, 'of': `${words(scope.kind)} ${words(scope.id)}, tenant ${words(s.tenant_id)}`,
    'value': el('span', {}, bar(s.utilization), ` ${number(s.value)} of ${number(s.limit)}`),
    'window': `${words(s.window_start)} to ${words(s.window_end)}`,
    'decided': `${words(s.decided_at)}, ${number(s.lag_ms)} ms after the event`,
    'policy': `${words(s.policy_id)} version ${words(s.policy_version)}, limit ${words(s.limit_id)}, mode ${words(s.mode)}`,
    'snapshot': id(s.snapshot_id),
  }));
}

function considered(items, s) {
  const gave = ((s && s.contributors) || []).map((c) => `${words(c.policy_id)} gave ${[].concat(c.gave || []).join(', ')}`);
  if (!items.length) return line({ class: 'muted', text: gave.join('; ') || 'not known: it rests on no signal, or its terms are gone' });
  const rows = items.slice(0, 50).map((c) => ({ policy: c.policy_id, limit: c.limit_id, max: c.max, precedence: c.precedence, outcome: c.outcome, why: c.why }));
  return el('div', {}, table('Policies considered, and why each won or lost', rows), gave.length ? line({ class: 'muted', text: gave.join('; ') }) : null);
}

function code(text, name) {
  const pre = el('pre', { class: 'scroll', tabindex: '0', role: 'region', 'aria-label': name });
  pre.textContent = text;
  return pre;
}
