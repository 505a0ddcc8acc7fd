// Reads, writes and the event stream of /api/v1. Tenant and token stay in this tab.

const PATIENCE = 15_000; // ms for an answer
const SILENCE = 45_000; // ms without a byte before a stream counts as dead; the server sends a sign of life every 15 s
const MOST = 1 << 20; // characters of one event

/** What was asked for and refused, or did not arrive, in words. */
export class Problem extends Error {
  constructor(status, words, body = {}) {
    super(words);
    this.status = status;
    this.body = body;
  }
}

/** Whose eyes this tab looks with. */
export const session = {
  get tenant() { return kept('tenant'); },
  get token() { return kept('token'); },
  use(tenant, token) { keep('tenant', tenant.trim()); keep('token', token.trim()); },
};

function kept(name) {
  try { return sessionStorage.getItem(name) || ''; } catch { return memory.get(name) || ''; }
}
function keep(name, value) {
  try { sessionStorage.setItem(name, value); } catch { memory.set(name, value); }
}
const memory = new Map(); // where the browser allows no storage

function headers(more) {
  const token = session.token;
  return token ? { ...more, Authorization: 'Bearer ' + token } : { ...more };
}

function address(path, parameters = {}) {
  const query = new URLSearchParams(parameters);
  if (session.tenant) query.set('tenant_id', session.tenant);
  const text = query.toString();
  return text ? path + '?' + text : path;
}

/** GET; the JSON of the answer, which may take `patience` ms. */
export async function read(path, parameters, patience) {
  return (await answer(address(path, parameters), { headers: headers({ Accept: 'application/json' }) }, patience)).body;
}

/** GET of what is not below /api/v1 and needs nobody. */
export async function readOpen(path) {
  return (await answer(path, {})).body;
}

/** POST; {status, body}. The same key again is the same wish again. */
export function write(path, body, key) {
  const more = { 'Content-Type': 'application/json', 'Idempotency-Key': key };
  return answer(path, { method: 'POST', headers: headers(more), body: JSON.stringify(body) });
}

/** A key for a wish. crypto.randomUUID is not there on pages that came over plain HTTP. */
export function newKey() {
  return Array.from(crypto.getRandomValues(new Uint8Array(16)), (b) => b.toString(16).padStart(2, '0')).join('');
}

async function answer(url, options, patience = PATIENCE) {
  let response, text;
  try {
    response = await fetch(url, { cache: 'no-store', signal: AbortSignal.timeout(patience), ...options });
    text = await response.text();
  } catch (error) {
    const late = error.name === 'TimeoutError';
    throw new Problem(0, late ? `no answer within ${patience / 1000} s` : 'the sidecar cannot be reached');
  }
  const body = parsed(text);
  if (!response.ok) throw new Problem(response.status, words(response, body || {}), body || {});
  if (body === undefined) throw new Problem(response.status, 'the answer is not JSON');
  return { status: response.status, body };
}

function parsed(text) {
  try { return JSON.parse(text); } catch { return undefined; }
}

function words(response, body) {
  const said = [body.detail || body.reason || body.title || `the answer was ${response.status}`];
  if (response.status === 401) said.push('Enter a token under Access.');
  if (response.status === 403) said.unshift('Not allowed:');
  for (const what of ['authority', 'role']) {
    const [need, given] = [body['required_' + what], body['given_' + what]];
    if (need !== undefined && need !== null) said.push(`(${what} needed: ${need}, given: ${given ?? 'none'})`);
  }
  for (const what of ['conflicts', 'dependents']) {
    if (Array.isArray(body[what]) && body[what].length) said.push(`${what}: ${body[what].slice(0, 5).map(brief).join('; ')}`);
  }
  const wait = response.headers.get('Retry-After');
  if (wait && /^\d+$/.test(wait)) said.push(`Try again in ${wait} s.`);
  return said.join(' ');
}

function brief(item) {
  if (typeof item === 'string') return item;
  const named = item.explanation || item.policy_id || item.id || item.name;
  return named ? String(named) : JSON.stringify(item).slice(0, 200);
}

/** Listens for good: `on.event(name, record)`, `on.state(state, words)` with state live, lost or refused. Returns how to stop. */
export function listen(on) {
  const stop = new AbortController();
  follow(on, stop.signal);
  return () => stop.abort();
}

async function follow(on, stopped) {
  for (let failures = 0; !stopped.aborted; failures += 1) {
    const began = Date.now();
    let why;
    try {
      await stream(on, stopped);
      why = 'the stream ended';
    } catch (error) {
      if (stopped.aborted) return;
      why = error.message;
      if ([401, 403, 404].includes(error.status)) { on.state('refused', why); return; }
    }
    if (stopped.aborted) return;
    if (Date.now() - began > 10_000) failures = 0;
    const wait = Math.min(30_000, 1000 * 2 ** Math.min(failures, 5)) * (0.75 + Math.random() / 4);
    on.state('lost', why);
    await new Promise((resolve) => { setTimeout(resolve, wait); stopped.addEventListener('abort', resolve, { once: true }); });
  }
}

async function stream(on, stopped) {
  const quiet = new AbortController();
  const signal = AbortSignal.any([stopped, quiet.signal]);
  let watch;
  const alive = () => { clearTimeout(watch); watch = setTimeout(() => quiet.abort(), SILENCE); };
  alive();
  try {
    const url = address('/api/v1/events');
    const response = await fetch(url, { cache: 'no-store', headers: headers({ Accept: 'text/event-stream' }), signal });
    if (!response.ok) throw new Problem(response.status, words(response, parsed(await response.text()) || {}));
    on.state('live', '');
    const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
    const feed = lines(on.event);
    for (;;) {
      const { done, value } = await reader.read();
      if (done) return;
      alive();
      feed(value);
    }
  } catch (error) {
    if (error instanceof Problem) throw error;
    throw new Problem(0, quiet.signal.aborted ? 'nothing was heard for a while' : 'the connection was lost');
  } finally {
    clearTimeout(watch);
    quiet.abort();
  }
}

/** Takes server-sent events apart, however they were cut. */
export function lines(emit) {
  let rest = '', name = '', data = [], size = 0;
  const line = (text) => {
    if (text === '') {
      const record = parsed(data.join('\n'));
      // what cannot be read was missed: whoever shows it reads it again
      if (data.length) emit(...(record && typeof record === 'object' ? [name, record] : ['missed', {}]));
      name = ''; data = []; size = 0;
    } else if (text.startsWith('event:')) {
      name = text.slice(6).trim();
    } else if (text.startsWith('data:')) {
      size += text.length;
      if (size > MOST) throw new Problem(0, 'an event is too large');
      data.push(text.slice(5).replace(/^ /, ''));
    }
  };
  return (chunk) => {
    rest += chunk;
    if (rest.length > MOST) throw new Problem(0, 'an event is too large');
    const parts = rest.split(/\r\n|\n|\r(?=.)/s);
    rest = parts.pop();
    parts.forEach(line);
  };
}
