// The router: an address after # names a run and a view; each view has a function that shows it and returns its end.

import { address, complain, el, get } from "./dom.js";
import { showChat } from "./chat.js";
import { showOverview, showRuns } from "./overview.js";
import { showRows } from "./rows.js";

const TABS = { overview: "Overview", rows: "Rows", report: "Report", chat: "Chat" };
const VIEWS = { overview: showOverview, rows: showRows, report: showReport, chat: showChat };
const main = document.getElementById("main");
const trail = document.getElementById("trail");
const tabs = document.getElementById("tabs");
let [open, end, update] = ["", () => {}, null];
let arrived = false;

function place() {
  const [path, query] = location.hash.replace(/^#\/?/, "").split("?");
  const [run = "", view = "overview"] = path.split("/").map(decodeURIComponent);
  return { run, view: view in VIEWS ? view : "overview", query: Object.fromEntries(new URLSearchParams(query)) };
}

function showReport(container, { run }) {
  const source = `/report?${new URLSearchParams({ run })}`;
  const title = el("h1", { class: "hidden" }, `Report of ${run}`);
  container.replaceChildren(title);
  document.body.classList.add("wide-view");
  const show = ({ value }) =>
    container.replaceChildren(title, ...(value.has_report
      ? [
        el("p", { class: "note" }, el("a", { href: source, target: "_blank", rel: "noopener noreferrer" }, "Open it alone")),
        el("iframe", { class: "report", title: `Report of ${run}`, src: source, sandbox: "allow-scripts allow-downloads" }),
      ]
      : [el("p", { class: "notice" }, "The run has no report yet.")]));
  get("/api/run", { run }).then(show, (error) => complain(error.message));
  return { end: () => document.body.classList.remove("wide-view") };
}

function header({ run, view }) {
  const home = el("a", { href: address([]), "aria-current": run ? null : "page" }, "Runs");
  trail.replaceChildren(
    el("span", { class: "mark" }, "distill"),
    home,
    ...(run ? [el("span", { "aria-hidden": "true" }, "/"), el("bdi", {}, run)] : []),
  );
  tabs.hidden = !run;
  tabs.replaceChildren(
    ...Object.entries(TABS).map(([name, title]) =>
      el("a", { href: address([run, name]), "aria-current": name === view ? "page" : null }, title),
    ),
  );
  document.title = run ? `${run} – distill` : "distill";
}

function route() {
  if (location.hash === "#main") return;
  const now = place();
  const key = `${now.run}/${now.view}`;
  if (key === open && update) {
    update(now);
    return;
  }
  end();
  complain("");
  header(now);
  open = key;
  const view = (now.run ? VIEWS[now.view] : showRuns)(main, now);
  [end, update] = [view.end, view.update ?? null];
  if (document.activeElement === document.body && arrived) main.focus({ preventScroll: true });
  arrived = true;
}

addEventListener("hashchange", route);
route();
