// Opens every page of a built site, at the width of a desk and of a phone, light and
// dark, and fails where one scrolls sideways, loads from a third party, raises an error
// or breaks a rule of axe (WCAG 2 A and AA, contrast among them):
//
//     npm install --no-save playwright-core axe-core
//     node .ci/look.mjs site [part of an address] ...
//
// CHROME is the browser, by default Debian's. With PICTURES=folder each view is kept.
import { createReadStream, existsSync, readdirSync, statSync } from "node:fs";
import { createServer } from "node:http";
import { createRequire } from "node:module";
import { extname, join, relative } from "node:path";

const require = createRequire(join(process.cwd(), "package.json"));
const { chromium } = require("playwright-core");
const axe = require.resolve("axe-core/axe.min.js");

const [root, ...parts] = process.argv.slice(2);
const TYPES = {
  ".html": "text/html",
  ".css": "text/css",
  ".js": "text/javascript",
  ".json": "application/json",
  ".svg": "image/svg+xml",
  ".png": "image/png",
};

const server = createServer((request, response) => {
  const address = decodeURIComponent(new URL(request.url, "http://site").pathname);
  let path = join(root, address);
  if (existsSync(path) && statSync(path).isDirectory()) path = join(path, "index.html");
  const type = TYPES[extname(path)] ?? "application/octet-stream";
  response.writeHead(existsSync(path) ? 200 : 404, { "content-type": type });
  if (existsSync(path)) createReadStream(path).pipe(response);
  else response.end();
});
await new Promise((resolve) => server.listen(0, resolve));
const home = `http://localhost:${server.address().port}/`;

const pages = readdirSync(root, { recursive: true })
  .filter((name) => name.endsWith("index.html"))
  .map((name) => relative(".", name).replace(/index\.html$/, ""))
  .filter((name) => !parts.length || parts.some((part) => name.includes(part)))
  .sort();

const VIEWS = [1280, 390].flatMap((width) =>
  ["light", "dark"].map((colorScheme) => ({
    colorScheme,
    viewport: { width, height: 844 },
  })),
);
const browser = await chromium.launch({
  executablePath: process.env.CHROME ?? "/usr/bin/chromium",
  args: ["--no-sandbox", "--disable-background-networking", "--disable-sync"],
});
let faults = 0;
for (const view of VIEWS) {
  const context = await browser.newContext(view);
  const name = `${view.viewport.width} ${view.colorScheme}`;
  for (const page of pages) {
    const found = await look(context, page, name);
    faults += found.length;
    for (const fault of found) console.log(`${page || "front page"}, ${name}: ${fault}`);
  }
  await context.close();
}
await browser.close();
server.close();
console.log(`${pages.length} pages in ${VIEWS.length} views: ${faults} faults`);
process.exit(faults || !pages.length ? 1 : 0);

async function look(context, page, name) {
  const found = [];
  const tab = await context.newPage();
  tab.on("pageerror", (error) => found.push(`an error, ${error}`));
  tab.on("request", (request) => {
    const url = request.url();
    if (!url.startsWith(home) && !url.startsWith("data:") && !url.startsWith("blob:"))
      found.push(`loads ${url}`);
  });
  tab.on("response", (response) => {
    if (response.status() >= 400) found.push(`${response.status()} ${response.url()}`);
  });
  await tab.goto(home + page, { waitUntil: "load" });
  // The theme's scripts change the page once it is there.
  await tab.waitForTimeout(300);
  const wide = await tab.evaluate(
    () => document.documentElement.scrollWidth - window.innerWidth,
  );
  if (wide > 0) found.push(`${wide} pixels wider than the screen`);
  await tab.addScriptTag({ path: axe });
  const { violations } = await tab.evaluate(() =>
    axe.run(document, { runOnly: ["wcag2a", "wcag2aa"] }),
  );
  for (const { id, nodes } of violations)
    found.push(`${id}, ${nodes.length} times, as ${nodes[0].html.slice(0, 120)}`);
  if (process.env.PICTURES) {
    const file = `${page.replaceAll("/", "_") || "index"}${name.replace(" ", "_")}.png`;
    await tab.screenshot({ path: join(process.env.PICTURES, file), fullPage: true });
  }
  await tab.close();
  return found;
}
