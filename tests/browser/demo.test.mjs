// The console of a running sidecar at RUNWARDEN_CONSOLE_URL, as `runwarden demo` is one.

import assert from 'node:assert/strict';
import { after, before, test } from 'node:test';
import { DESK, LISTS, PHONE, hide, launch, open, overflow, settled, shoot, tabbed, violations, watch } from './page.mjs';

const given = process.env.RUNWARDEN_CONSOLE_URL;
const url = given && new URL('/', given).href;
const skip = url ? false : 'RUNWARDEN_CONSOLE_URL is not set';
const PATIENCE = 120_000; // ms until a demo has breached something and learned from it
let browser;
before(async () => { browser = url && await launch(); });
after(async () => { await browser?.close(); });

test('every section of a sidecar is read without trouble', { skip }, async (t) => {
  const page = await open(t, browser, url);
  await settled(page);
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
  for (const list of [...LISTS, 'level', 'sidecar']) {
    const trouble = page.locator(`#${list} .trouble`);
    assert.equal(await trouble.isVisible(), false, `${list}: ${await trouble.textContent()}`);
  }
  assert.match(await page.locator('#badge-level').textContent(), /^(RED|YELLOW|GREEN|UNKNOWN)$/);
  assert.ok(await page.locator('#panels .rows > li').count() >= 25);
});

test('a breach is shown within a second of its decision', { skip }, async (t) => {
  const page = await open(t, browser, url);
  await settled(page);
  await page.locator('#live', { hasText: /^live$/ }).waitFor();
  const known = await page.locator('#interventions .rows > li').evaluateAll((items) => items.map((item) => item.dataset.key));
  await watch(page);
  const arrived = await page.waitForFunction((old) => {
    const fresh = [...document.querySelectorAll('#interventions .rows > li')].filter((item) => !old.includes(item.dataset.key));
    const read = fresh.map((item) => window.seen[item.dataset.key] - new Date(JSON.parse(item.print).created_at).getTime());
    return read.length >= 5 ? read : false;
  }, known, { timeout: PATIENCE });
  const took = (await arrived.jsonValue()).sort((a, b) => a - b);
  t.diagnostic(`ms from decision to screen: ${took.join(' ')}`);
  assert.ok(took[Math.floor(took.length / 2)] < 1000, `${took}`);
});

test('a lesson of a sidecar is converted by clicking, and a draft waits', { skip }, async (t) => {
  const page = await open(t, browser, url);
  const first = page.locator('#lessons .rows > li').first();
  await first.waitFor({ timeout: PATIENCE });
  const key = await first.getAttribute('data-key');
  await page.locator(`#lessons .rows > li[data-key="${key}"]`).getByRole('button', { name: /^Convert / }).click();
  await page.locator('#lessons .done', { hasText: 'converted to' }).waitFor();
  await page.locator(`#lessons .rows > li[data-key="${key}"]`).waitFor({ state: 'detached' });
  await page.locator('#proposals .rows > li').first().waitFor();
});

test('a decision of a sidecar is explained', { skip }, async (t) => {
  const page = await open(t, browser, url);
  await page.locator('#interventions').getByRole('link', { name: /^explain intervention/ }).first().click({ timeout: PATIENCE });
  await page.locator('#explained h3', { hasText: 'Policies considered' }).waitFor({ timeout: 60_000 });
});

for (const [width, viewport] of [['380', PHONE], ['1280', DESK]]) {
  for (const colorScheme of ['light', 'dark']) {
    test(`at ${width} pixels, ${colorScheme}, a sidecar's console fits and axe finds nothing serious`, { skip }, async (t) => {
      const page = await open(t, browser, url, { viewport, colorScheme });
      await settled(page);
      const { wide, page: size, screen } = await overflow(page);
      assert.deepEqual([wide, size], [[], screen]);
      assert.deepEqual(await violations(page), []);
      await shoot(page, `demo-${width}-${colorScheme}`);
    });
  }
}

test("the keyboard reaches everything in a sidecar's console", { skip }, async (t) => {
  const page = await open(t, browser, url, { expected: /ERR_/ });
  await settled(page);
  // a list that changes under the keyboard is no fair test of reach: what comes in from now on waits
  await hide(page, true);
  await page.context().setOffline(true);
  const { missed } = await tabbed(page);
  assert.deepEqual(missed, []);
});
