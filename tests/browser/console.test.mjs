// The console against records that a test chooses.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import * as fixture from './fixture.mjs';
import { DESK, LISTS, PHONE, hide, launch, open, overflow, settled, shoot, tabbed, violations, watch } from './page.mjs';

const TEASING = '<img src=x onerror="document.title=\'caught\'">';
const LONG = 'run-' + '0123456789abcdef'.repeat(15);
let browser;
before(async () => { browser = await launch(); });
after(async () => { await browser.close(); });

async function site(t) {
  const started = await fixture.start();
  t.after(async () => {
    // the pages first: they would say that their stream broke
    for (const context of browser.contexts()) await context.close();
    await started.close();
  });
  return started;
}

const live = (page) => page.locator('#live', { hasText: /^live$/ }).waitFor();
const row = (page, key) => page.locator(`.rows > li[data-key="${key}"]`);

test('every section shows its records, and says how old they are', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await settled(page);
  await live(page);
  for (const [list, count] of [['limits', 2], ['alerts', 2], ['interventions', 2], ['lessons', 2], ['proposals', 1], ['panels', 25]]) {
    assert.equal(await page.locator(`#${list} .rows > li`).count(), count, list);
    assert.match(await page.locator(`#${list} .age`).textContent(), /^(just read|read \d+ s ago)$/, list);
  }
  assert.equal(await page.locator('#badge-level').textContent(), 'GREEN');
  assert.match(await row(page, 'signal-1').textContent(), /90 %.*4 min left|4 min left.*90 %|252 s/s);
  assert.match(await row(page, 'signal-2').textContent(), /limit reached/);
  assert.match(await page.locator('#counts').textContent(), /1,203,441/);
  assert.deepEqual(s.asked.find((a) => a.path === '/api/v1/alerts').query, { status: 'open', limit: '20' });
});

test('a breach is shown within a second of it, with its alert and its intervention', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await settled(page);
  await live(page);
  await watch(page);
  const at = Date.now();
  s.data['limits-up'] = [fixture.signal(7, { kind: 'BREACH', utilization: 1.2 })];
  s.emit('signal', fixture.signal(7, { kind: 'BREACH', utilization: 1.2 }));
  s.emit('alert', fixture.alert(7, { severity: 'CRITICAL', last_seen: new Date().toISOString() }));
  s.emit('intervention', fixture.intervention(7, { created_at: new Date().toISOString() }));
  for (const key of ['alert-7', 'intervention-7', 'signal-7']) {
    await row(page, key).waitFor();
    const took = await page.evaluate((id) => window.seen[id], key) - at;
    t.diagnostic(`${key} was there after ${took} ms`);
    assert.ok(took < 1000, `${key} took ${took} ms`);
  }
  assert.equal(await page.locator('#alerts .rows > li').first().getAttribute('data-key'), 'alert-7', 'the newest is first');
  assert.match(await page.locator('#announce').textContent(), /^CRITICAL alert: run_tokens/);
  s.emit('alert', fixture.alert(7, { revision: 2, status: 'RESOLVED' }));
  await row(page, 'alert-7').waitFor({ state: 'detached' });
});

test('an older revision changes nothing, and neither does what concerns another tenant', async (t) => {
  const s = await site(t);
  s.data.interventions = [fixture.intervention(1, { revision: 3, state: 'SUCCEEDED' })];
  const page = await open(t, browser, s.url);
  await page.locator('#access summary').click();
  await page.locator('#tenant').fill('acme');
  await page.getByRole('button', { name: 'Use these' }).click();
  await settled(page);
  await live(page);
  s.say('intervention', fixture.intervention(1, { revision: 2, state: 'ISSUED' }));
  s.say('intervention', fixture.intervention(8, { tenant_id: 'other' }));
  s.say('intervention', { type: 'guardian.intervention.started', tenant_id: 'acme' });
  s.emit('intervention', fixture.intervention(9));
  await row(page, 'intervention-9').waitFor();
  assert.match(await row(page, 'intervention-1').textContent(), /SUCCEEDED/);
  assert.equal(await page.locator('#interventions .rows > li').count(), 2);
  assert.ok(s.asked.filter((a) => a.path === '/api/v1/events').at(-1).query.tenant_id === 'acme');
});

test('the level is read again every 15 seconds, in the colours of its badge', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url, { clock: true });
  const badge = page.locator('#badge');
  const colours = { GREEN: 'rgb(16, 185, 129)', RED: 'rgb(239, 68, 68)', YELLOW: 'rgb(245, 158, 11)', UNKNOWN: 'rgb(107, 114, 128)' };
  const asked = () => s.asked.filter((a) => a.path === '/api/v1/policy-level').length;
  await page.locator('#badge.GREEN').waitFor();
  await page.clock.pauseAt(Date.now() + 2000);
  for (const policy of ['RED', 'YELLOW', 'UNKNOWN']) {
    const before = asked();
    s.data.level = fixture.level(policy);
    await page.clock.runFor(9000);
    assert.equal(asked(), before, 'not before its time');
    await page.clock.runFor(6000);
    await page.locator(`#badge.${policy}`).waitFor();
    assert.equal(asked(), before + 1);
    assert.equal(await badge.evaluate((node) => getComputedStyle(node).backgroundColor), colours[policy]);
  }
  s.emit('policy_level', fixture.level('RED'));
  await page.locator('#badge.RED').waitFor();
  assert.equal(await page.locator('#level-trust').textContent(), 'LOCKED');
  assert.match(await page.title(), /^RED/);
});

test('a lesson is converted by clicking', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await page.getByRole('button', { name: 'Convert Near the limit: run_tokens at 91 %' }).click();
  await row(page, 'lesson-1').waitFor({ state: 'detached' });
  assert.match(await page.locator('#lessons .done').textContent(), /run_tokens at 91 %: converted to draft proposal-9/);
  const [post] = s.posts;
  assert.deepEqual([post.path, post.body], ['/api/v1/lessons/lesson-1/convert', { tenant_id: 'acme' }]);
  assert.match(post.key, /^[0-9a-f]{32}$/);
  assert.equal(await page.evaluate(() => document.activeElement.id), 'h-lessons', 'the keyboard is not lost with the button');
});

test('what a person has decided does not come back from a read that is older', async (t) => {
  const s = await site(t);
  const kept = s.data.lessons;
  const page = await open(t, browser, s.url, { clock: true });
  await page.getByRole('button', { name: /^Convert .*91 %/ }).click();
  await row(page, 'lesson-1').waitFor({ state: 'detached' });
  s.data.lessons = [...kept, fixture.lesson(5)];
  await page.clock.runFor(3000);
  await row(page, 'lesson-5').waitFor();
  assert.deepEqual(await page.locator('#lessons .rows > li').evaluateAll((items) => items.map((item) => item.dataset.key)), ['lesson-2', 'lesson-5']);
});

test('a refusal is shown in words, with the authority that is needed', async (t) => {
  const s = await site(t);
  const path = '/api/v1/policy-proposals/proposal-1/approve';
  s.answers[path] = [
    { status: 403, body: { detail: 'approving is for a person', required_authority: 4, given_authority: 3 } },
    { status: 409, body: { detail: 'GOV-POL-001', conflicts: [{ explanation: 'planner-pace contradicts run-budget' }] } },
  ];
  const page = await open(t, browser, s.url, { expected: /40[39]/ });
  await page.getByRole('button', { name: 'Approve planner-pace-1' }).click();
  await page.keyboard.press('Enter');
  assert.equal(s.posts.length, 0, 'a reason is required');
  await page.keyboard.type('reviewed');
  await page.keyboard.press('Enter');
  const note = row(page, 'proposal-1').locator('.note');
  await note.filter({ hasText: 'Not allowed: approving is for a person (authority needed: 4, given: 3)' }).waitFor();
  await page.keyboard.press('Enter');
  await note.filter({ hasText: 'GOV-POL-001 conflicts: planner-pace contradicts run-budget' }).waitFor();
  assert.notEqual(s.posts[0].key, s.posts[1].key, 'after a refusal it is another wish');
});

test('what did not arrive is sent again under the same key', async (t) => {
  const s = await site(t);
  s.answers['/api/v1/lessons/lesson-1/convert'] = Array(20).fill('cut'); // the browser itself tries again too
  const page = await open(t, browser, s.url, { expected: /ERR_/ });
  const button = page.getByRole('button', { name: /^Convert .*91 %/ });
  await button.click();
  await row(page, 'lesson-1').locator('.note', { hasText: 'it will happen once' }).waitFor();
  await button.click();
  await page.waitForFunction(() => document.querySelector('#lessons .act .buttons').ariaBusy === 'false');
  s.answers = {};
  await button.click();
  await row(page, 'lesson-1').waitFor({ state: 'detached' });
  assert.ok(s.posts.length >= 2);
  assert.equal(new Set(s.posts.map((post) => post.key)).size, 1);
});

test('what is still being decided says so until it is', async (t) => {
  const s = await site(t);
  const path = '/api/v1/interventions/intervention-2/approve';
  s.answers[path] = [{ status: 202, body: { command_id: 'c-1', status: 'PENDING' } }];
  const page = await open(t, browser, s.url, { clock: true, expected: /404/ });
  await page.getByRole('button', { name: 'Approve AGENT_QUARANTINE of r-2' }).click();
  await page.keyboard.type('it loops');
  await page.keyboard.press('Enter');
  await row(page, 'intervention-2').locator('.note', { hasText: 'still being decided' }).waitFor();
  s.commands['c-1'] = { command_id: 'c-1', status: 'ACCEPTED', result: {} };
  await page.clock.runFor(2500);
  await page.locator('#announce', { hasText: 'AGENT_QUARANTINE of r-2: approved; it is issued' }).waitFor();
  assert.equal(s.posts[0].body.reason, 'it loops');
});

test('lessons are put off and dismissed by the keyboard alone', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await settled(page);
  const reach = async (name) => {
    for (let n = 0; n < 200; n += 1) {
      await page.keyboard.press('Tab');
      if (await page.evaluate(() => document.activeElement.getAttribute('aria-label')) === name) return;
    }
    assert.fail(`Tab does not reach ${name}`);
  };
  await reach('Defer Near the limit: run_tokens at 91 %');
  await page.keyboard.press('Enter');
  await page.keyboard.press('Escape');
  assert.equal(await page.evaluate(() => document.activeElement.textContent), 'Defer', 'Escape goes back');
  await page.keyboard.press('Enter');
  assert.equal(await page.evaluate(() => document.activeElement.type), 'date');
  await page.keyboard.press('Enter');
  await row(page, 'lesson-1').waitFor({ state: 'detached' });
  const { defer_until: until } = s.posts[0].body;
  assert.ok(new Date(until) - Date.now() > 5 * 86_400_000, until);
  await reach('Dismiss Near the limit: run_tokens at 92 %');
  await page.keyboard.press('Enter');
  await page.keyboard.type('known');
  await page.keyboard.press('Enter');
  await row(page, 'lesson-2').waitFor({ state: 'detached' });
  assert.deepEqual(s.posts[1], { ...s.posts[1], path: '/api/v1/lessons/lesson-2/dismiss', body: { tenant_id: 'acme', reason: 'known' } });
  await page.locator('#lessons .empty').waitFor();
});

test('a form that is being filled in outlives news of its record', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await live(page);
  await page.getByRole('button', { name: /^Dismiss .*92 %/ }).click();
  await page.keyboard.type('half a rea');
  s.emit('lesson', fixture.lesson(2, { revision: 2, description: 'more is known now' }));
  s.emit('lesson', fixture.lesson(3, { created_at: new Date().toISOString() }));
  await row(page, 'lesson-3').waitFor();
  await row(page, 'lesson-2').getByText('more is known now').waitFor();
  await page.keyboard.type('son');
  assert.equal(await row(page, 'lesson-2').locator('input').inputValue(), 'half a reason');
});

test('without a token it says so, and with one it works; the token stays in the tab', async (t) => {
  const s = await site(t);
  s.token = 'a token of some length';
  const page = await open(t, browser, s.url, { expected: /401/ });
  await page.locator('#alerts .trouble', { hasText: 'a bearer token is needed Enter a token under Access.' }).waitFor();
  assert.match(await page.locator('#sidecar .age').textContent(), /read/, 'what needs none is there');
  await page.locator('#access summary').click();
  await page.getByLabel('Token').fill(s.token);
  await page.keyboard.press('Enter');
  await live(page);
  await settled(page);
  assert.equal(await page.locator('.trouble:visible').count(), 0);
  const stores = await page.evaluate(() => [Object.values(sessionStorage).length, localStorage.length, document.cookie, location.href]);
  assert.deepEqual(stores, [2, 0, '', s.url]);
  await page.reload();
  await live(page);
  await page.locator('#access summary').click();
  await page.getByRole('button', { name: 'Forget both' }).click();
  await page.locator('#alerts .trouble').waitFor();
  assert.equal(await page.locator('#alerts .rows > li').count(), 0, 'what it showed is gone');
});

test('a section fails alone, and says how old is what it still shows', async (t) => {
  const s = await site(t);
  s.fail['/api/v1/lessons'] = { status: 503, body: { detail: 'lessons are being read' }, headers: { 'Retry-After': '2' } };
  const page = await open(t, browser, s.url, { clock: true, expected: /50[03]/ });
  await page.locator('#lessons .trouble', { hasText: 'Cannot be read: lessons are being read Try again in 2 s.' }).waitFor();
  await row(page, 'alert-1').waitFor();
  assert.equal(await page.locator('.trouble:visible').count(), 1);
  s.fail['/api/v1/limits-up'] = { status: 500 };
  await page.clock.runFor(12_000);
  await page.locator('#limits .trouble', { hasText: /What is below is 1\d s old/ }).waitFor();
  assert.equal(await page.locator('#limits .rows > li').count(), 2);
  s.fail = {};
  await page.clock.runFor(61_000);
  await page.locator('.trouble:visible').first().waitFor({ state: 'detached' });
});

test('a stream that breaks is taken up again, and what happened meanwhile is read', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url, { expected: /ERR_|chunked/ });
  await settled(page);
  await live(page);
  s.fail['/api/v1/events'] = 'cut';
  s.cut();
  await page.locator('#live', { hasText: 'reconnecting' }).waitFor();
  s.data.alerts = [fixture.alert(9, { title: 'happened meanwhile' }), ...s.data.alerts];
  delete s.fail['/api/v1/events'];
  await live(page);
  await row(page, 'alert-9').waitFor();
  s.emit('alert', fixture.alert(10));
  await row(page, 'alert-10').waitFor();
  s.data.alerts = [fixture.alert(11)];
  s.emit('missed', { changes: 3 });
  await row(page, 'alert-11').waitFor();
});

test('a tab that nobody sees holds no stream, and catches up when it is seen', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await live(page);
  const ended = new Promise((resolve) => { [...s.streams][0].on('close', resolve); });
  await hide(page, true);
  await ended;
  assert.equal(s.streams.size, 0);
  s.emit('alert', fixture.alert(12));
  await hide(page, false);
  await live(page);
  await row(page, 'alert-12').waitFor();
});

test('events are read however the network cuts them', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  const read = (text, sizes) => page.evaluate(async ([all, cuts]) => {
    const { lines } = await import('/console/api.js');
    return cuts.map((size) => {
      const got = [];
      const feed = lines((name, record) => got.push([name, record]));
      for (let at = 0; at < all.length; at += size) feed(all.slice(at, at + size));
      return JSON.stringify(got);
    });
  }, [text, sizes]);
  for (const end of ['\n', '\r\n']) {
    const text = [': alive', '', 'event: alert', 'data: {"a":', 'data: 1}', '', 'event: signal', 'data:{"b":"ü"}', '', 'data: not json', '', ''].join(end);
    const wanted = '[["alert",{"a":1}],["signal",{"b":"ü"}],["missed",{}]]';
    assert.deepEqual(await read(text, [1, 2, 3, 7, 1000]), Array(5).fill(wanted), JSON.stringify(end));
  }
  const huge = await page.evaluate(async () => {
    const { lines } = await import('/console/api.js');
    const feed = lines(() => {});
    try { for (let n = 0; n < 100; n += 1) feed('x'.repeat(100_000)); } catch (error) { return error.message; }
    return 'kept all of it';
  });
  assert.equal(huge, 'an event is too large');
});

test('lists hold at most 50 records, whatever comes', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await live(page);
  for (let n = 100; n < 260; n += 1) s.emit('intervention', fixture.intervention(n, { created_at: new Date(Date.now() + n).toISOString() }));
  await row(page, 'intervention-259').waitFor();
  assert.equal(await page.locator('#interventions .rows > li').count(), 50);
  assert.match(await page.locator('#interventions .count').textContent(), /^50 of 16\d$/);
});

test('a decision is explained from a link: policies, window, SQL and events', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await row(page, 'intervention-1').getByRole('link', { name: 'explain signal signal-1' }).click();
  const answer = page.locator('#explained');
  for (const text of ['run-budget allows less', 'FROM session(telemetry', 'r-1-start', 'the same comes out again', '40,366 of 40,000']) {
    await answer.getByText(text).first().waitFor();
  }
  assert.equal(await page.locator('#id').inputValue(), 'signal-1');
  s.fail['/api/v1/explain/nothing'] = { status: 404, body: { detail: 'there is no decision nothing' } };
  const other = await open(t, browser, s.url, { hash: '#explain/nothing', expected: /404/ });
  await other.locator('#explain .trouble', { hasText: 'there is no decision nothing' }).waitFor();
});

test('a panel opens to its rows', async (t) => {
  const s = await site(t);
  const page = await open(t, browser, s.url);
  await page.locator('#panels summary', { hasText: 'POL-GOV-ACT-O1' }).click();
  await page.getByRole('cell', { name: 'run-budget-2' }).waitFor();
  assert.equal(s.asked.find((a) => a.path.endsWith('/rows')).path, '/api/v1/panels/POL-GOV-ACT-O1/rows');
});

/** Everything at its worst: markup and endless ids, every box open. */
async function crowded(t, options) {
  const s = await site(t);
  s.data.level = fixture.level('RED', { tenant_id: LONG });
  s.data.alerts = [fixture.alert(3, { severity: 'CRITICAL', title: TEASING + LONG, tenant_id: TEASING, description: LONG }), ...s.data.alerts];
  s.data['limits-up'].push(fixture.signal(3, { scope: { kind: 'RUN', id: LONG }, metric: TEASING, utilization: 0.83, minutes_to_limit: 0.4, tenant_id: LONG }));
  s.data.interventions.push(fixture.intervention(3, { target: { kind: 'AGENT', id: LONG }, reason: TEASING, state: 'TIMED_OUT' }));
  s.data.lessons.push(fixture.lesson(3, { title: LONG, description: TEASING, severity: 'CRITICAL' }));
  s.data['policy-proposals'].push(fixture.proposal(2, { policy_id: LONG, rationale: TEASING, tenant_id: '*', current_version: 2 }));
  s.data.panels[3].question = TEASING + LONG;
  const page = await open(t, browser, s.url, { hash: `#explain/${encodeURIComponent(LONG)}`, ...options });
  await settled(page);
  await live(page);
  await page.locator('#explained h3').first().waitFor();
  await page.locator('#level summary').click();
  await page.locator('#panels summary').first().click();
  await page.getByRole('cell', { name: 'run-budget-2' }).waitFor();
  await page.getByRole('button', { name: /^Defer .*91 %/ }).click();
  return page;
}

for (const [width, viewport] of [['380', PHONE], ['1280', DESK]]) {
  for (const colorScheme of ['light', 'dark']) {
    test(`at ${width} pixels, ${colorScheme}: nothing overflows, nothing is markup, axe finds nothing serious`, async (t) => {
      const page = await crowded(t, { viewport, colorScheme });
      const { wide, page: size, screen } = await overflow(page);
      assert.deepEqual([wide, size], [[], screen]);
      assert.equal(await page.locator('img').count(), 0);
      assert.notEqual(await page.title(), 'caught');
      assert.equal(await row(page, 'alert-3').locator('.title strong').textContent(), TEASING + LONG, 'it is shown as what it is');
      assert.deepEqual(await violations(page), []);
      await shoot(page, `crowded-${width}-${colorScheme}`);
      await page.locator('#access summary').click();
      assert.deepEqual((await overflow(page)).wide, [], 'with the form of access open');
    });
    test(`at ${width} pixels, ${colorScheme}: an ordinary day`, async (t) => {
      const s = await site(t);
      const page = await open(t, browser, s.url, { viewport, colorScheme });
      await settled(page);
      await live(page);
      assert.deepEqual(await violations(page), []);
      await shoot(page, `ordinary-${width}-${colorScheme}`);
    });
  }
}

test('the keyboard reaches everything that can be acted on', async (t) => {
  const page = await crowded(t, { viewport: DESK });
  await page.locator('#access summary').click();
  const { count, missed } = await tabbed(page);
  assert.ok(count > 80, `${count} things`);
  assert.deepEqual(missed, []);
});

test('with nothing to show, every list says what would be there', async (t) => {
  const s = await site(t);
  for (const list of ['limits-up', 'alerts', 'interventions', 'lessons', 'policy-proposals', 'panels']) s.data[list] = [];
  const page = await open(t, browser, s.url);
  await settled(page);
  for (const list of LISTS) assert.ok((await page.locator(`#${list} .empty`).textContent()).length > 20, list);
  assert.equal(await page.locator('.empty:visible').count(), LISTS.length + 1);
  assert.deepEqual(await violations(page), []);
  await shoot(page, 'empty-1280-light');
});
