//! The status page: one HTML document and one script, nothing fetched from elsewhere.

/// `/`
pub(super) const HTML: &str = r#"<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>runwarden</title>
<link rel="stylesheet" href="/status.css">
<script src="/status.js" defer></script>
</head>
<body>
<header><h1>runwarden</h1><span id="badge" class="badge" role="status" aria-live="polite">…</span></header>
<p>Holds LLM runs within their limits: reads run telemetry from Kafka, evaluates windowed SQL, and writes signals, alerts and
interventions, each exactly once. This page shows this one process.</p>
<noscript><p>This page needs JavaScript; the same facts are at <a href="/status.json">/status.json</a>.</p></noscript>
<section id="level" aria-labelledby="h-level" hidden><h2 id="h-level">Policy level</h2>
<p><span id="level-badge" class="badge" role="status" aria-live="polite">…</span> <span id="level-of"></span></p>
<dl><dt>last evaluation</dt><dd id="level-at">…</dd><dt>trust</dt><dd id="level-trust">…</dd><dt>forecast risk</dt><dd id="level-risk">…</dd></dl>
<details><summary>details</summary><ul id="level-why"><li>…</li></ul></details>
<form id="level-token" hidden><label>token <input type="password" autocomplete="off" size="28"></label> <button>show</button></form>
</section>
<section aria-labelledby="h-ready"><h2 id="h-ready">Readiness</h2><ul id="reasons"><li>…</li></ul></section>
<section aria-labelledby="h-counts"><h2 id="h-counts">Counts since start</h2><table><tbody id="counts"></tbody></table></section>
<section aria-labelledby="h-partitions"><h2 id="h-partitions">Partitions owned</h2>
<table><thead><tr><th scope="col">partition</th><th scope="col">records behind</th><th scope="col">state</th></tr></thead>
<tbody id="partitions"></tbody></table></section>
<section aria-labelledby="h-more"><h2 id="h-more">More</h2>
<ul>
<li><a href="/metrics">/metrics</a> for Prometheus</li>
<li><a href="/healthz">/healthz</a> whether the loop runs (restart it when not)</li>
<li><a href="/readyz">/readyz</a> whether it does its work, and what is missing</li>
<li><a href="/status.json">/status.json</a> what this page shows</li>
</ul></section>
<footer id="about"></footer>
</body>
</html>
"#;

/// `/status.css`
pub(super) const CSS: &str = r#":root { color-scheme: light dark; --line: #8885; --ok: #14783c; --bad: #b3261e; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 46rem; margin: 2rem auto; padding: 0 1rem; }
header { display: flex; align-items: center; gap: 1rem; }
h1 { font-size: 1.6rem; margin: 0; } h2 { font-size: 1rem; margin: 1.5rem 0 .4rem; }
.badge { padding: .1rem .6rem; border-radius: .3rem; color: #fff; background: #666; }
.badge.ok { background: var(--ok); } .badge.bad { background: var(--bad); }
.badge.level { color: #111; font-weight: 600; } .badge.RED { background: #ef4444; } .badge.YELLOW { background: #f59e0b; }
.badge.GREEN { background: #10b981; } .badge.UNKNOWN { background: #6b7280; color: #fff; }
dl { display: grid; grid-template-columns: max-content 1fr; gap: .15rem 1.2rem; margin: .4rem 0; } dd { margin: 0; } [hidden] { display: none; }
input, button { font: inherit; max-width: 100%; } summary { cursor: pointer; } li { overflow-wrap: anywhere; }
table { border-collapse: collapse; } td, th { padding: .15rem 1.2rem .15rem 0; border-bottom: 1px solid var(--line); text-align: left; }
td.n { text-align: right; font-variant-numeric: tabular-nums; } footer { margin-top: 2rem; opacity: .75; font-size: .85rem; }
"#;

/// `/status.js`
pub(super) const JS: &str = r#"'use strict';
const byId = (id) => document.getElementById(id);
const cell = (row, text, cls) => { const td = row.insertCell(); td.textContent = text; if (cls) td.className = cls; };
const list = (id, items) => byId(id).replaceChildren(...items.map((t) => {
  const li = document.createElement('li'); li.textContent = t; return li; }));
function badge(text, cls) { const b = byId('badge'); b.textContent = text; b.className = 'badge ' + cls; }
function show(s) {
  badge(s.ready ? 'ready' : s.alive ? 'not ready' : 'stalled', s.ready ? 'ok' : 'bad');
  const reasons = Object.entries(s.reasons).map(([code, text]) => code + ': ' + text);
  list('reasons', reasons.length ? reasons : ['nothing is missing']);
  const counts = byId('counts'); counts.replaceChildren();
  for (const [name, n] of Object.entries(s.counts)) {
    const row = counts.insertRow(); cell(row, name.replaceAll('_', ' ')); cell(row, n.toLocaleString(), 'n');
  }
  const partitions = byId('partitions'); partitions.replaceChildren();
  for (const p of s.partitions) {
    const row = partitions.insertRow(); cell(row, p.partition);
    cell(row, p.lag === null ? 'unknown' : p.lag.toLocaleString(), 'n'); cell(row, p.restoring ? 'restoring' : 'live');
  }
  if (!s.partitions.length) { cell(partitions.insertRow(), 'none'); }
  byId('about').textContent = 'runwarden ' + s.version + ' (' + s.revision + '), started ' + s.started_at
    + ', up ' + Math.floor(s.uptime_seconds) + ' s, configuration ' + (s.config_hash || 'not loaded')
    + ', roles ' + s.roles.join(' ');
}
function stand(p) {
  const b = byId('level-badge'); b.textContent = p.policy; b.className = 'badge level ' + p.policy;
  byId('level-of').textContent = p.tenant_id === '*' ? 'of all tenants' : 'of ' + p.tenant_id;
  byId('level-at').textContent = p.evaluated_at ? new Date(p.evaluated_at).toLocaleString() : 'never';
  byId('level-trust').textContent = !p.inputs ? 'unknown' : p.inputs.trust_locked ? 'LOCKED' : 'unlocked';
  byId('level-risk').textContent = p.inputs ? p.inputs.forecast_risk.toUpperCase() : 'unknown';
  const inputs = Object.entries(p.inputs || {}).map(([name, value]) => name.replaceAll('_', ' ') + ': ' + value);
  const missing = p.missing.length ? ['missing: ' + p.missing.join(', ')] : [];
  list('level-why', [...p.reasons, ...missing, ...inputs]);
}
async function level() {
  const token = sessionStorage.getItem('token');
  try {
    const answer = await fetch('/api/v1/policy-level', { cache: 'no-store', headers: token ? { Authorization: 'Bearer ' + token } : {} });
    byId('level').hidden = answer.status === 404;
    byId('level-token').hidden = answer.status !== 401;
    if (answer.ok) { stand(await answer.json()); }
    else if (answer.status === 401) { const b = byId('level-badge'); b.textContent = 'needs a token'; b.className = 'badge'; }
  } catch { const b = byId('level-badge'); b.textContent = 'unreachable'; b.className = 'badge bad'; }
}
byId('level-token').addEventListener('submit', (event) => {
  event.preventDefault(); sessionStorage.setItem('token', event.target.querySelector('input').value.trim()); level();
});
level(); setInterval(level, 15000);
async function tick() {
  try { show(await (await fetch('/status.json', { cache: 'no-store' })).json()); }
  catch { badge('unreachable', 'bad'); }
  setTimeout(tick, 2000);
}
tick();
"#;
