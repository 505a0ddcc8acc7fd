// A server that answers as a sidecar does, with records that a test chooses: for what a demo cannot show.
//
//   node fixture.mjs [port]    serves it for people, with an intervention every two seconds

import { readFile } from 'node:fs/promises';
import { createServer } from 'node:http';
import { fileURLToPath } from 'node:url';

const CONSOLE = new URL('../../src/serve/console/', import.meta.url);
const POLICY = "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; frame-ancestors 'none'";
const KINDS = { html: 'text/html', css: 'text/css', js: 'text/javascript' };

const ago = (seconds) => new Date(Date.now() - seconds * 1000).toISOString().replace('Z', '000Z');

export function alert(n, more = {}) {
  return {
    alert_id: `alert-${n}`, revision: 1, status: 'OPEN', tenant_id: 'acme', correlation_key: `RUN/r-${n}`, severity: 'HIGH',
    title: `run_tokens of RUN r-${n} is 40366, limit 40000`, description: 'BREACH run_tokens: 40366 of 40000 (policy run-budget, limit tokens)',
    first_seen: ago(90 + n), last_seen: ago(20 + n), alert_count: 2, suppressed_count: 0, members: [`signal-${n}`, `signal-${n}-near`],
    members_total: 2, runs: [`r-${n}`], agents: [], metrics: ['run_tokens'], sources: ['signal'], fingerprint: `f-${n}`, resolve_reason: null,
    current_value: 40366, minutes_to_limit: null, channels: [], silenced_by: [], inhibited_by: [], is_synthetic: false, ...more,
  };
}

export function intervention(n, more = {}) {
  return {
    intervention_id: `intervention-${n}`, revision: 1, state: 'ISSUED', mode: 'enforced', type: 'STOP', target: { kind: 'RUN', id: `r-${n}` },
    parameters: null, tenant_id: 'acme', run_id: `r-${n}`, policy_id: 'run-budget', signal_id: `signal-${n}`,
    reason: `run_tokens of RUN r-${n} is 40366, limit 40000 (policy run-budget, limit tokens)`, authority_level: 5,
    initiated_by: 'policy:run-budget', principal: 'runwarden', approval_required: false, approved_by: null, created_at: ago(15 + n),
    issued_at: ago(15 + n), deadline: ago(-15 + n), executed_at: null, reverted_at: null, reverted_by: null, supersedes: null,
    parent_intervention_id: null, audit_log: { before: null, after: null, parameters: null, results: null }, ...more,
  };
}

export function signal(n, more = {}) {
  return {
    signal_id: `signal-${n}`, kind: 'NEAR', mode: 'BLOCK', tenant_id: 'acme', policy_id: 'run-budget', policy_version: 1,
    snapshot_id: 'ef404a19-38f1-56d4-859b-63bcace2be2d', contributors: [{ policy_id: 'run-budget', gave: ['max', 'near', 'action'] }],
    limit_id: 'tokens', limit_type: 'TOKENS_PER_RUN', category: 'BUDGET', metric: 'run_tokens', scope: { kind: 'RUN', id: `r-${n}` },
    run_id: `r-${n}`, window_start: ago(300), window_end: ago(-3300), value: 36_000, limit: 40_000, near: 0.8, utilization: 0.9,
    overshoot: 0, minutes_to_limit: 4.2, raised_by: 'value', enforcement: 'BLOCK', on_breach: 'STOP', event_time: ago(30),
    decided_at: ago(29), lag_ms: 12, complete: true, is_synthetic: false, ...more,
  };
}

export function lesson(n, more = {}) {
  return {
    id: `lesson-${n}`, revision: 1, tenant_id: 'acme', lesson_type: 'near_threshold', severity: 'MEDIUM', source_event_id: `signal-${n}`,
    source_event_type: 'signal', source_run_id: `r-${n}`, title: `Near the limit: run_tokens at 9${n} %`,
    description: 'run_tokens of acme reached the band 90-95 of limit tokens (policy run-budget).',
    proposed_action: 'Raise the limit, or look at what the planner repeats.', detected_pattern: { metric: 'run_tokens', band: '90-95' },
    status: 'pending', draft_proposal_id: null, created_at: ago(600 + n), is_synthetic: false, ...more,
  };
}

export function proposal(n, more = {}) {
  return {
    proposal_id: `proposal-${n}`, revision: 1, tenant_id: 'acme', policy_id: `planner-pace-${n}`, status: 'DRAFT',
    rationale: 'the planners loop', created_at: ago(4000), created_by: 'user:ada', decided_at: null, decided_by: null,
    decision_reason: null, draft_version: 1, current_version: null, versions: 1, ...more,
  };
}

const QUESTIONS = {
  'POL-GOV-ACT': ['What policy proposals exist?', 'Which policies are in force?', 'Who asked for what?', 'How does the layer stand?', 'How well does it hold?'],
  'POL-GOV-DFT': ['What draft proposals exist?', 'Which versions are there?', 'Which version counts?', 'What contradicts what?', 'What depends on what?'],
  'POL-GOV-LES': ['Which lessons wait?', 'How many lessons of each kind?', 'What is one lesson about?', 'Which became drafts?', 'Which were put off?'],
  'POL-LIM-THR': ['Which risk ceilings are set?', 'Which budgets are set?', 'Which quotas of runs?', 'Which quotas of tokens?', 'Which cooldowns?'],
  'POL-LIM-VIO': ['What was violated?', 'What was breached?', 'Which anomalies were seen?', 'Where do shadow and enforced differ?', 'What is violated now?'],
};

export function panels() {
  const rows = Object.entries(QUESTIONS).flatMap(([area, questions]) => questions.map((question, n) => ({
    panel_id: `${area}-O${n + 1}`, question, topic: area, endpoint: '/api/v1/policies/rules', health: 'HEALTHY', row_count: 3 + n,
    last_checked_at: ago(100), alert_enabled: area === 'POL-GOV-ACT' && n > 2,
  })));
  Object.assign(rows[11], { health: 'EMPTY', row_count: 0 });
  Object.assign(rows[22], { health: 'FILTER_BREAK' });
  return rows;
}

export function level(policy = 'GREEN', more = {}) {
  return {
    policy, evaluated_at: ago(8), tenant_id: '*', revision: 7, missing: ['consensus_pct'],
    inputs: { trust_locked: policy === 'RED', integrity_score: 97.5, consensus_pct: 100, reputation_score: 91, forecast_risk: 'low', recent_responses: 1 },
    thresholds: { red_integrity: 90, red_consensus: 85, red_responses: 8, yellow_integrity: 95, yellow_consensus: 90, yellow_reputation: 80, yellow_responses: 4 },
    reasons: policy === 'RED' ? ['trust is locked', 'the forecast of risk is high'] : ['every input is within its bounds'], ...more,
  };
}

export function explained(id) {
  return {
    what: 'signal', decision: signal(1, { signal_id: id, kind: 'BREACH' }), signal: signal(1, { signal_id: id, kind: 'BREACH', value: 40_366, utilization: 1.009 }),
    sql: "-- metric: run_tokens\nSELECT tenant_id, run_id, window_start, window_end,\n       sum(total_tokens) FILTER (WHERE event_type = 'run.step') AS value\n"
      + "FROM session(telemetry, event_time, INTERVAL '24 hours', event_type IN ('run.completed', 'run.failed'))\nGROUP BY tenant_id, run_id\n",
    policy: { id: 'run-budget' },
    considered: [
      { policy_id: 'run-budget', limit_id: 'tokens', precedence: 100, max: 40_000, outcome: 'won', why: 'the smallest maximum' },
      { policy_id: 'project-budget', limit_id: 'tokens', precedence: 100, max: 90_000, outcome: 'lost', why: 'run-budget allows less' },
    ],
    events: { count: 21, shown: [{ topic: 'runs.telemetry', partition: 0, offset: 13_315, event: { event_id: 'r-1-start', event_time: ago(300) } }] },
    again: { same: true, steps: 3, records: 8192, first_step: 7, last_step: 9, version: '0.1.0' },
  };
}

const STATUS = {
  service: 'runwarden', version: '0.1.0', revision: 'unknown', config_hash: 'c0ffee', roles: ['edge', 'core', 'serve', 'channels'],
  started_at: ago(4000), uptime_seconds: 4000, heartbeat_age_seconds: 0.1, alive: true, ready: true, reasons: {}, lag: 11,
  partitions: [{ partition: 0, lag: 5, restoring: false }, { partition: 1, lag: null, restoring: true }],
  counts: { records_in: 1_203_441, decoded: 1_203_440, dead_letters: 1, signals_near: 42, signals_breach: 17, interventions_enforced: 17 },
};

/** Starts one on a free port. What a test may change: `data`, `token`, `fail`, `answers`; what it may see: `posts`, `asked`. */
export async function start(port = 0) {
  const site = {
    data: {
      'limits-up': [signal(1), signal(2, { utilization: 1.02, value: 40_800, kind: 'BREACH', minutes_to_limit: null })],
      alerts: [alert(1), alert(2, { severity: 'MEDIUM' })], interventions: [intervention(1), intervention(2, { state: 'PROPOSED', type: 'AGENT_QUARANTINE' })],
      lessons: [lesson(1), lesson(2)], 'policy-proposals': [proposal(1)], panels: panels(), level: level(),
    },
    token: null, // the only one that opens, where there is one
    fail: {}, // path -> {status, body}
    answers: {}, // path -> {status, body} to a POST, each once per element of a list
    commands: {}, // id -> body
    posts: [], asked: [], streams: new Set(),
  };
  const server = createServer((request, response) => {
    handle(site, request, response).catch((error) => { response.destroy(error); });
  });
  await new Promise((resolve) => { server.listen(port, '127.0.0.1', resolve); });
  site.url = `http://127.0.0.1:${server.address().port}/`;
  site.say = (name, record) => site.send(`event: ${name}\ndata: ${JSON.stringify(record)}\n\n`);
  site.emit = (name, record) => { keep(site.data, name, record); site.say(name, record); };
  site.send = (text) => site.streams.forEach((stream) => stream.write(text));
  site.cut = () => site.streams.forEach((stream) => stream.destroy());
  site.close = () => new Promise((resolve) => { server.close(resolve); server.closeAllConnections(); });
  return site;
}

/** What is said of a record on the stream can be read too. */
function keep(data, name, record) {
  const [list, key] = { alert: ['alerts', 'alert_id'], intervention: ['interventions', 'intervention_id'], lesson: ['lessons', 'id'] }[name] || [];
  if (!list) return;
  const others = data[list].filter((known) => known[key] !== record[key]);
  data[list] = record.status === 'RESOLVED' ? others : [record, ...others];
}

async function handle(site, request, response) {
  const url = new URL(request.url, 'http://x');
  const path = url.pathname;
  const json = (status, body, more = {}) => {
    const kind = status < 400 ? 'application/json' : 'application/problem+json';
    response.writeHead(status, { 'Content-Type': kind, 'Content-Security-Policy': POLICY, ...more }).end(JSON.stringify(body));
  };
  const file = path === '/' ? 'index.html' : (/^\/console\/([a-z]+\.(?:css|js))$/.exec(path) || [])[1];
  if (file) {
    const kind = `${KINDS[file.split('.')[1]]}; charset=utf-8`;
    response.writeHead(200, { 'Content-Type': kind, 'Content-Security-Policy': POLICY, 'Cache-Control': 'no-store' });
    response.end(await readFile(new URL(file, CONSOLE)));
    return;
  }
  site.asked.push({ path, query: Object.fromEntries(url.searchParams), authorization: request.headers.authorization });
  const failing = site.fail[path];
  if (failing === 'cut') { request.socket.destroy(); return; }
  if (failing) { json(failing.status, failing.body || { detail: 'it was told to fail' }, failing.headers); return; }
  if (path === '/status.json') { json(200, STATUS); return; }
  if (!path.startsWith('/api/v1/')) { json(404, { detail: 'there is no such page' }); return; }
  if (site.token && request.headers.authorization !== `Bearer ${site.token}`) {
    json(401, { detail: 'a bearer token is needed' });
    return;
  }
  if (request.method === 'POST') { await post(site, request, path, json); return; }
  get(site, path.slice('/api/v1/'.length), Number(url.searchParams.get('limit') || 50), response, json);
}

async function post(site, request, path, json) {
  const parts = [];
  for await (const part of request) parts.push(part);
  site.posts.push({ path, key: request.headers['idempotency-key'], body: JSON.parse(Buffer.concat(parts)) });
  const told = site.answers[path] && site.answers[path].shift();
  if (told === 'cut') { request.socket.destroy(); return; }
  if (told) { json(told.status, told.body); return; }
  const [, list, id, verb] = /^\/api\/v1\/([^/]+)\/([^/]+)\/([^/]+)$/.exec(path).map(decodeURIComponent);
  const key = { lessons: 'id', 'policy-proposals': 'proposal_id', interventions: 'intervention_id' }[list];
  site.data[list] = site.data[list].filter((record) => record[key] !== id);
  json(200, { status: 'ACCEPTED', result: verb === 'convert' ? { proposal_id: 'proposal-9' } : {} });
}

function get(site, path, limit, response, json) {
  const rows = (/^panels\/(.+)\/rows$/.exec(path) || [])[1];
  if (path === 'events') {
    response.writeHead(200, { 'Content-Type': 'text/event-stream', 'Content-Security-Policy': POLICY }).write(':\n\n');
    site.streams.add(response);
    response.on('close', () => site.streams.delete(response));
  } else if (path === 'policy-level') {
    json(200, site.data.level);
  } else if (rows) {
    const items = Array.from({ length: 3 }, (_, n) => ({ rule_id: `run-budget-${n}`, status: 'ACTIVE', version: n, created_at: ago(5000), depends_on: [] }));
    json(200, { items, total: 3, has_more: false, filters_applied: {} });
  } else if (path.startsWith('explain/')) {
    json(200, explained(decodeURIComponent(path.slice(8))));
  } else if (path.startsWith('commands/')) {
    const body = site.commands[path.slice(9)];
    json(body ? 200 : 404, body || { detail: 'it is not decided yet' });
  } else if (site.data[path]) {
    const items = site.data[path];
    json(200, { items: items.slice(0, limit), total: items.length, has_more: false, filters_applied: {} });
  } else {
    json(404, { detail: 'there is no such page' });
  }
}

if (process.argv[1] === fileURLToPath(import.meta.url)) {
  const site = await start(Number(process.argv[2] || 0));
  process.stdout.write(`${site.url}\n`);
  let n = 100;
  setInterval(() => {
    n += 1;
    const now = ago(0);
    const record = intervention(n, { created_at: now });
    site.emit('intervention', record);
  }, 2000);
}
