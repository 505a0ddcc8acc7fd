// A page of the console in Debian's Chromium, and what must be true of every page.

import assert from 'node:assert/strict';
import { mkdir } from 'node:fs/promises';
import axe from 'axe-core';
import { chromium } from 'playwright-core';

export const PHONE = { width: 380, height: 800 };
export const DESK = { width: 1280, height: 900 };
export const LISTS = ['limits', 'alerts', 'interventions', 'lessons', 'proposals', 'panels'];
const SHOTS = process.env.RUNWARDEN_CONSOLE_SCREENSHOTS;

export async function launch() {
  const executablePath = process.env.CHROMIUM || '/usr/bin/chromium';
  return chromium.launch({ executablePath, args: ['--no-sandbox', '--disable-dev-shm-usage'] });
}

/** Opens the console. When the test ends nothing may have gone wrong in the page, save what `expected` matches. */
export async function open(t, browser, url, { viewport = DESK, colorScheme = 'light', expected = null, clock = false, hash = '' } = {}) {
  const context = await browser.newContext({ viewport, colorScheme, reducedMotion: 'reduce' });
  const page = await context.newPage();
  const wrong = [];
  page.on('console', (message) => { if (['error', 'warning'].includes(message.type())) wrong.push(message.text()); });
  page.on('pageerror', (error) => wrong.push(String(error)));
  page.on('request', (request) => { if (new URL(request.url()).origin !== new URL(url).origin) wrong.push(`outside: ${request.url()}`); });
  t.after(async () => {
    await context.close();
    assert.deepEqual(wrong.filter((text) => !(expected && expected.test(text))), [], 'nothing goes wrong in the page');
  });
  if (clock) await page.clock.install();
  await page.goto(url + hash);
  return page;
}

/** Waits until every section has been read. */
export async function settled(page) {
  await page.waitForFunction(() => [...document.querySelectorAll('main .age')]
    .every((age) => age.textContent !== '' || age.closest('section').id === 'explain'));
}

/** Notes when each record appears, by this machine's clock. */
export async function watch(page) {
  await page.evaluate(() => {
    window.seen = {};
    const note = () => document.querySelectorAll('.rows > li').forEach((item) => { window.seen[item.dataset.key] ??= Date.now(); });
    note();
    new MutationObserver(note).observe(document.querySelector('main'), { childList: true, subtree: true });
  });
}

/** As if the tab went into the background, or came back. */
export async function hide(page, hidden) {
  await page.evaluate((value) => {
    Object.defineProperty(document, 'hidden', { configurable: true, get: () => value });
    document.dispatchEvent(new Event('visibilitychange'));
  }, hidden);
}

export async function violations(page) {
  await page.evaluate(axe.source);
  const found = await page.evaluate(() => window.axe.run(document, { resultTypes: ['violations'] }));
  return found.violations.filter((v) => ['serious', 'critical'].includes(v.impact))
    .map((v) => `${v.id}: ${v.nodes.map((n) => `${n.target} ${n.failureSummary}`).join(' | ')}`);
}

export async function overflow(page) {
  return page.evaluate(() => {
    const wide = [...document.querySelectorAll('body *')].filter((node) => node.checkVisibility() && !node.closest('.scroll, nav, .unseen, .skip')
      && node.getBoundingClientRect().right > document.documentElement.clientWidth + 0.5);
    return { wide: wide.map((node) => node.outerHTML.slice(0, 120)), page: document.documentElement.scrollWidth, screen: document.documentElement.clientWidth };
  });
}

/** Everything that can be acted on and is shown, and what of it Tab reaches. */
export async function tabbed(page) {
  await page.evaluate(() => { document.activeElement.blur(); window.reached = new Set(); window.scrollTo(0, 0); });
  for (let n = 0; n < 500; n += 1) {
    await page.keyboard.press('Tab');
    const again = await page.evaluate(() => {
      const at = document.activeElement;
      // past the end it begins anew, by way of the body; a field of a date has several stops
      const again = at !== document.body && at !== window.last && window.reached.has(at);
      window.last = at;
      window.reached.add(at);
      return again;
    });
    if (again) break;
  }
  return page.evaluate(() => {
    const all = [...document.querySelectorAll('a[href], button, input, summary, [tabindex="0"]')].filter((node) => node.checkVisibility());
    return { count: all.length, missed: all.filter((node) => !window.reached.has(node)).map((node) => node.outerHTML.slice(0, 160)) };
  });
}

export async function shoot(page, name) {
  if (!SHOTS) return;
  await mkdir(SHOTS, { recursive: true });
  await page.screenshot({ path: `${SHOTS}/${name}.png`, fullPage: true });
}
