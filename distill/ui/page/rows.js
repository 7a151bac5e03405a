// The rows of a run's files: pages, a search, and one row with its verdicts, lineage and requests.

import { address, badge, bytes, complain, el, get, number, poll, text } from "./dom.js";

const PAGE = 50;
const FILES_EVERY = 3000;
const TYPING = 250;
const FILTERS = ["text", "verdict", "label", "shortest", "longest"];

export function showRows(container, start) {
  let now = start;
  let files = [];
  let search = new AbortController();
  let shown = "";
  let detailAt = null;
  const { run } = start;

  const nav = el("nav", { class: "files", "aria-label": "Files of the run" });
  const find = el("input", { id: "find", type: "search", placeholder: "Search all rows", size: 28, autocomplete: "off" });
  const verdict = el("select", { id: "verdict" });
  const label = el("select", { id: "label" });
  const shortest = el("input", { id: "shortest", type: "number", min: 0, placeholder: "from" });
  const longest = el("input", { id: "longest", type: "number", min: 0, placeholder: "to" });
  const fields = { text: find, verdict, label, shortest, longest };
  const state = el("p", { id: "count", class: "note", role: "status", "aria-live": "polite" });
  const list = el("ol", { class: "rows", "aria-label": "Rows" });
  const pages = el("p", { class: "tools pages" });
  const panel = el("aside", { class: "detail", "aria-label": "The row", tabindex: "-1", hidden: true });
  const named = (title, ...field) => el("label", {}, title, field);
  container.replaceChildren(
    el("h1", { class: "hidden" }, `Rows of ${run}`),
    nav,
    el("form", { class: "tools", role: "search", onsubmit: (event) => event.preventDefault() },
      named(el("span", { class: "hidden" }, "Search"), find), named("Verdict", verdict), named("Label", label),
      el("span", { class: "range" }, named("Characters", shortest), named(el("span", { class: "hidden" }, "to"), longest))),
    state,
    el("div", { class: "split" }, el("div", { class: "listing" }, list, pages), panel),
  );
  document.body.classList.add("wide-view");

  const file = () => now.query.file || files.find(({ bytes: size }) => size > 0)?.name || files[0]?.name;
  const go = (changes, replace = false) => {
    const target = address([run, "rows"], { ...now.query, ...changes });
    if (replace) location.replace(target);
    else location.hash = target;
  };

  let typing = 0;
  for (const [name, field] of Object.entries(fields)) {
    field.addEventListener("input", () => {
      clearTimeout(typing);
      typing = setTimeout(() => go({ [name]: field.value, first: "", row: "" }, true), field === find ? TYPING : 0);
    });
  }

  function drawFiles() {
    nav.replaceChildren(...files.map(({ name, bytes: size }) =>
      el("a", { href: address([run, "rows"], { file: name }), "aria-current": name === file() ? "page" : null },
        name.replace(/\.jsonl$/, ""), " ", el("small", {}, bytes(size)))));
  }

  async function drawFacets() {
    const { value } = await get("/api/facets", { run, file: file() });
    for (const [field, names] of [[verdict, value.verdicts], [label, value.labels]]) {
      const chosen = now.query[field.id] ?? "";
      const all = chosen && !names.includes(chosen) ? [...names, chosen] : names;
      field.replaceChildren(el("option", { value: "" }, "any"), ...all.map((name) => el("option", { value: name }, name)));
      field.value = chosen;
      field.parentElement.hidden = !all.length;
    }
  }

  function line(row) {
    const target = address([run, "rows"], { ...now.query, file: file(), row: row.at });
    const [title, body] = row.damage ? [row.prompt, `not shown: ${row.damage}`] : [row.prompt, row.answer];
    return el("li", {},
      el("a", { class: row.damage ? "row damaged" : "row", href: target, "data-at": row.at, "aria-current": String(row.at) === now.query.row ? "true" : null },
        el("span", { class: "id" }, el("bdi", {}, row.id ?? "–")),
        el("span", { class: "asked", dir: "auto" }, title),
        el("span", { class: "answered", dir: "auto" }, body),
        el("span", { class: "badges" }, (row.objections ?? []).map((one) => badge(one, "alert")), (row.labels ?? []).map((one) => badge(one)),
          row.length ? badge(`${number(row.length)} characters`, "length") : null)));
  }

  async function load() {
    search.abort();
    search = new AbortController();
    const { signal } = search;
    const wanted = Object.fromEntries(FILTERS.map((name) => [name, now.query[name] ?? ""]));
    const query = { run, file: file(), ...wanted };
    try {
      if (Object.values(wanted).some(Boolean)) await seek(query, signal);
      else await page(query, signal);
      complain("");
    } catch (error) {
      if (error.name !== "AbortError") complain(error.message);
    }
  }

  async function page(query, signal) {
    const first = Number(now.query.first || 0);
    for (let rows = null; ; ) {
      const { value } = await get("/api/rows", { ...query, first }, { signal });
      if (!rows) list.replaceChildren(...value.rows.map(line));
      rows = value.rows;
      const [from, to] = [first + 1, first + rows.length];
      const total = `${number(value.total)}${value.is_counted ? "" : "+"}`;
      state.textContent = rows.length ? `Rows ${number(from)}–${number(to)} of ${total}` : value.total ? `No rows here (of ${total})` : "No rows.";
      pages.replaceChildren(
        first > 0 ? el("a", { href: address([run, "rows"], { ...now.query, row: "", first: Math.max(0, first - PAGE) || "" }) }, "← Previous") : "",
        to < value.total ? el("a", { href: address([run, "rows"], { ...now.query, row: "", first: first + PAGE }) }, "Next →") : "",
        value.total > PAGE ? jump(value.total) : "");
      if (value.is_counted) return;
    }
  }

  function jump(total) {
    const field = el("input", { type: "number", min: 1, max: total, id: "jump", placeholder: "row" });
    field.addEventListener("change", () => go({ first: Math.max(0, Math.min(total, Number(field.value)) - 1) || "", row: "" }));
    return el("label", {}, "Go to row", field);
  }

  async function seek(query, signal) {
    list.replaceChildren();
    pages.replaceChildren();
    const begun = performance.now();
    let [at, count] = [0, 0];
    const more = async () => {
      const full = count + PAGE;
      while (at !== null && count < full) {
        const { value } = await get("/api/rows", { ...query, at }, { signal });
        list.append(...value.rows.map(line));
        count += value.rows.length;
        at = value.next;
        const seconds = ((performance.now() - begun) / 1000).toFixed(1);
        state.textContent = at === null ? `${number(count)} rows fit, ${seconds} s` : `${number(count)} rows fit so far; ${Math.floor(value.share * 100)}% searched`;
      }
      pages.replaceChildren(at === null ? "" : el("button", { type: "button", onclick: () => more().catch((error) => complain(error.message)) }, "Search on"));
    };
    await more();
  }

  async function drawDetail() {
    const at = now.query.row ?? "";
    for (const row of list.querySelectorAll(".row")) {
      if (row.dataset.at === at) row.setAttribute("aria-current", "true");
      else row.removeAttribute("aria-current");
    }
    const left = at === "" && panel.contains(document.activeElement) && detailAt?.split(" ").pop();
    container.querySelector(".split").classList.toggle("with-detail", at !== "");
    panel.hidden = at === "";
    if (left) list.querySelector(`[data-at="${left}"]`)?.focus();
    const key = `${file()} ${at}`;
    if (at === "" || key === detailAt) {
      detailAt = at === "" ? null : detailAt;
      return;
    }
    detailAt = key;
    const close = el("a", { href: address([run, "rows"], { ...now.query, row: "" }), class: "close" }, "Close");
    try {
      const { value } = await get("/api/row", { run, file: file(), at });
      if (detailAt === key) panel.replaceChildren(close, ...sections(value, run, file()));
    } catch (error) {
      panel.replaceChildren(close, el("p", { class: "notice" }, error.message));
    }
    panel.scrollTop = 0;
    if (!list.checkVisibility()) panel.focus();
  }

  async function draw() {
    if (!file()) {
      state.textContent = "The run has no rows yet.";
      return;
    }
    drawFiles();
    for (const [name, field] of Object.entries(fields)) {
      if (document.activeElement !== field) field.value = now.query[name] ?? "";
    }
    const key = JSON.stringify([file(), now.query.first, FILTERS.map((name) => now.query[name] ?? "")]);
    if (key !== shown) {
      shown = key;
      drawFacets().catch((error) => complain(error.message));
      load();
    }
    drawDetail();
  }

  const sized = (one) => one.find(({ name }) => name === file())?.bytes;
  const stop = poll("/api/run", { run }, FILES_EVERY, (value) => {
    if (!value) return;
    const before = sized(files);
    files = value.files;
    if (before !== undefined && before !== sized(files) && !FILTERS.some((name) => now.query[name])) shown = "";
    draw();
  });

  const keys = (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || /INPUT|SELECT|TEXTAREA/.test(event.target.tagName)) return;
    if (event.key === "/") {
      event.preventDefault();
      find.focus();
    }
    if (event.key === "Escape" && now.query.row) go({ row: "" });
    const step = { j: 1, ArrowDown: 1, k: -1, ArrowUp: -1 }[event.key];
    if (!step || event.target.closest(".detail")) return;
    const rows = [...list.querySelectorAll(".row")];
    const here = rows.findIndex((row) => row === document.activeElement || row.dataset.at === now.query.row);
    const next = rows[here + step];
    if (!next) return;
    event.preventDefault();
    next.focus();
    if (now.query.row) location.hash = next.hash;
  };
  addEventListener("keydown", keys);

  return {
    update(next) {
      now = next;
      draw();
    },
    end() {
      stop();
      search.abort();
      removeEventListener("keydown", keys);
      document.body.classList.remove("wide-view");
    },
  };
}

// --- one row

const facts = (pairs) =>
  el("dl", { class: "facts" }, pairs.map(([name, value]) => el("div", {}, el("dt", {}, name), el("dd", { dir: "auto" }, value))));

function sections(row, run, file) {
  const { lineage } = row;
  const link = ({ file: other, at }) => el("a", { href: address([run, "rows"], { file: other, row: at }) }, other.replace(/\.jsonl$/, ""));
  return [
    el("h2", {}, el("bdi", {}, row.id || file)),
    el("p", { class: "badges" }, row.objections.map((one) => badge(one, "alert")), row.labels.map((one) => badge(one))),
    turns(row.turns.length ? row.turns : row.prompt ? [{ role: "task", text: row.prompt }] : []),
    Object.keys(row.answers).length > 0 && el("div", { class: "columns" }, Object.entries(row.answers).map(([who, said]) =>
      el("article", { class: who }, el("h3", {}, who.replace("_", " ")), text(said || "(nothing)")))),
    row.verdicts.length > 0 && [el("h3", {}, "Verdicts"), verdictTable(row.verdicts, run)],
    [el("h3", {}, "Lineage"),
      facts([
        ...lineage.facts,
        ...(lineage.seeds.length ? [["grown from", lineage.seeds.join(", ")]] : []),
        ...(lineage.nearest ? [["nearest", lineage.nearest]] : []),
        ...(lineage.places.length ? [["also in", el("span", { class: "places" }, lineage.places.map(link))]] : []),
      ])],
    row.requests.length > 0 && [el("h3", {}, "Requests behind it"), row.requests.map(request)],
    el("details", { class: "card" }, el("summary", {}, "JSON"), el("pre", { class: "code", tabindex: "0" }, row.json)),
  ].flat(Infinity).filter(Boolean);
}

const turns = (list) =>
  el("div", { class: "turns" }, list.map(({ role, text: said }) =>
    el("div", { class: `turn ${role}` }, el("p", { class: "role" }, el("bdi", {}, role)), text(said))));

function verdictTable(verdicts, run) {
  const cell = (value) => el("td", {}, el("bdi", {}, value === null || value === undefined ? "" : String(value)));
  const row = ({ rule, keep, reason, value, threshold, neighbour, note }) =>
    el("tr", { class: keep === false ? "drops" : "" }, el("th", { scope: "row" }, el("bdi", {}, String(rule))),
      el("td", {}, keep === false ? `drop: ${reason}` : "keep"), cell(value), cell(threshold),
      el("td", {}, neighbour && el("a", { href: address([run, "rows"], { file: "sessions.jsonl", text: String(neighbour) }) }, String(neighbour)),
        note && ` ${note}`));
  return el("div", { class: "rules" }, el("table", { class: "verdict-table" },
    el("thead", {}, el("tr", {}, ["rule", "verdict", "value", "limit", "beside"].map((title) => el("th", { scope: "col" }, title)))),
    el("tbody", {}, verdicts.map(row))));
}

function request(one) {
  if (one.fault) return el("p", { class: "notice" }, one.fault);
  return el("details", { class: "card request" },
    el("summary", {}, el("span", { class: "opening" }, one.messages[one.messages.length - 1].text), badge(one.facts.find(([name]) => name === "stage")?.[1] ?? "")),
    turns([...one.messages, { role: "answer", text: one.text }]),
    facts(one.facts));
}
