// What a person decides: buttons, the form that asks for a reason or a date, and the answer in words.

import { newKey, read, session, write } from './api.js';
import { el, words } from './views.js';

const ASKS = 15; // times to ask for the answer to a command, 2 s apart

/** `label`, `path(record)`; `reason`: required, optional or none; `date`: ask for one; `done(result)` in words. */
const action = (label, path, more) => ({ label, path, reason: 'none', date: false, tone: '', ...more });
const of = (base, key, verb) => (record) => `${base}/${encodeURIComponent(record[key])}/${verb}`;

const lessons = (verb) => of('/api/v1/lessons', 'id', verb);
const proposals = (verb) => of('/api/v1/policy-proposals', 'proposal_id', verb);
const interventions = (verb) => of('/api/v1/interventions', 'intervention_id', verb);

export const LESSON = [
  action('Convert', lessons('convert'), { tone: 'main', done: (r) => `converted${draft(r)}` }),
  action('Defer', lessons('defer'), { reason: 'optional', date: true, done: () => 'deferred' }),
  action('Dismiss', lessons('dismiss'), { reason: 'required', done: () => 'dismissed' }),
];
export const PROPOSAL = [
  action('Approve', proposals('approve'), { reason: 'required', tone: 'main', done: () => 'approved; it is in force' }),
  action('Reject', proposals('reject'), { reason: 'required', done: () => 'rejected' }),
];
export const INTERVENTION = [
  action('Approve', interventions('approve'), { reason: 'required', tone: 'main', done: () => 'approved; it is issued' }),
  action('Reject', interventions('reject'), { reason: 'required', done: () => 'rejected' }),
];

function draft(answer) {
  const id = answer.draft_proposal_id || answer.proposal_id || (answer.result || {}).proposal_id;
  return id ? ` to draft ${words(id)}` : ' to a draft';
}

/** Buttons for a record. `what` names it for those who cannot see it; `decided(words)` is called when it is. */
export function buttons(actions, record, what, decided) {
  const form = el('div', 'form');
  const note = el('p', { class: 'note', role: 'status' });
  const row = el('p', 'buttons');
  for (const one of actions) {
    const button = el('button', { type: 'button', class: one.tone, text: one.label, 'data-name': one.label, 'aria-label': `${one.label} ${words(what)}` });
    const wish = { record, one, what, decided, row, form, note, button, sent: null };
    button.addEventListener('click', () => {
      if (row.ariaBusy === 'true') return;
      if (one.reason === 'none' && !one.date) send(wish, {}); else ask(wish);
    });
    row.append(button);
  }
  return el('div', 'act', row, form, note);
}

let fields = 0;

function field(label, input) {
  fields += 1;
  input.id = 'field-' + fields;
  return [el('label', { for: input.id, text: label }), input];
}

function ask(wish) {
  const { one, form, what, button } = wish;
  const reason = el('input', { type: 'text', maxlength: '500', autocomplete: 'off' });
  reason.required = one.reason === 'required';
  const until = el('input', { type: 'date', min: day(1) });
  until.required = one.date;
  if (one.date) until.value = day(7);
  const inside = [
    ...(one.date ? field('Until', until) : []),
    ...field(reason.required ? 'Reason' : 'Reason (optional)', reason),
    el('span', 'buttons', el('button', { type: 'submit', class: 'main', text: one.label }), ' ', el('button', { type: 'button', text: 'Cancel' })),
  ];
  const asked = el('form', { 'aria-label': `${one.label} ${words(what)}` }, ...inside);
  const close = () => { form.replaceChildren(); button.focus(); };
  asked.querySelector('button[type=button]').addEventListener('click', close);
  asked.addEventListener('keydown', (event) => { if (event.key === 'Escape') close(); });
  asked.addEventListener('submit', (event) => {
    event.preventDefault();
    if (wish.row.ariaBusy === 'true') return;
    const more = one.date ? { defer_until: new Date(until.value + 'T00:00:00').toISOString() } : {};
    send(wish, reason.value.trim() ? { ...more, reason: reason.value.trim() } : more);
  });
  form.replaceChildren(asked);
  (one.date ? until : reason).focus();
}

function day(ahead) {
  const at = new Date();
  at.setDate(at.getDate() + ahead);
  return [at.getFullYear(), String(at.getMonth() + 1).padStart(2, '0'), String(at.getDate()).padStart(2, '0')].join('-');
}

async function send(wish, more) {
  const { record, one, row, form, note, decided, what } = wish;
  const body = { tenant_id: record.tenant_id || session.tenant, ...more };
  const text = JSON.stringify(body);
  // what did not arrive for certain is asked for again under the same key, so that it happens once
  if (!wish.sent || wish.sent.text !== text) wish.sent = { text, key: newKey() };
  row.ariaBusy = 'true'; // not disabled: that would take the keyboard away
  say(note, 'sending…', '');
  try {
    const answer = await write(one.path(record), body, wish.sent.key);
    const result = answer.status === 202 ? await wait(note, answer.body) : answer.body;
    if (form.contains(document.activeElement)) wish.button.focus();
    form.replaceChildren();
    if (result === null) return;
    say(note, '', '');
    decided(`${words(what)}: ${one.done(result)}`);
  } catch (error) {
    if (error.status) wish.sent = null;
    const again = `${one.label}: ${error.message}. Try again: it will happen once.`;
    say(note, error.status ? `${one.label} was refused. ${error.message}` : again, 'bad');
  } finally {
    row.ariaBusy = 'false';
  }
}

/** Asks for the answer to a command until it is there; null: it is not. */
async function wait(note, accepted) {
  say(note, 'still being decided…', '');
  for (let asked = 0; accepted.command_id && asked < ASKS; asked += 1) {
    await new Promise((resolve) => { setTimeout(resolve, 2000); });
    try {
      const result = await read('/api/v1/commands/' + encodeURIComponent(accepted.command_id));
      if (result.status === 'ACCEPTED') return result;
      if (result.status === 'REFUSED') { say(note, `Refused: ${words(result.reason)}${authority(result)}`, 'bad'); return null; }
    } catch (error) {
      if (error.status && ![404, 429, 503].includes(error.status)) throw error;
    }
  }
  say(note, 'still being decided; look again later', '');
  return null;
}

function authority(result) {
  const need = result.required_authority;
  return need ? ` (authority needed: ${need}, given: ${result.given_authority ?? 'none'})` : '';
}

function say(note, text, tone) {
  note.className = 'note ' + tone;
  note.textContent = text;
}
