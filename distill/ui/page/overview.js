// The list of runs, and one run while it works.

import { address, ago, bytes, duration, el, number, pill, poll, renderer, svg, text, usd } from "./dom.js";

const LIST_EVERY = 3000;
const RUN_EVERY = 1500;
const SILENT_SECONDS = 120;
const FIGURES = {
  expand: ["tasks", "tasks"], collect: ["sessions", "sessions"], curate: ["kept", "kept"], train: ["steps", "steps"],
  compare: ["prompts", "prompts"], report: [null, "written"],
};

export function showRuns(container) {
  const list = el("ul", { class: "runs" });
  container.replaceChildren(el("h1", {}, "Runs"), list);
  const draw = renderer();
  let runs = [];
  const show = (value) => {
    runs = value ?? runs;
    draw(list, [runs, runs.map((run) => ago(run.touched))], () =>
      runs.length ? runs.map(card) : el("li", { class: "note" }, "No runs yet. In a terminal: distill run quickstart"),
    );
  };
  return { end: poll("/api/runs", {}, LIST_EVERY, show) };
}

function card(run) {
  const { usd: spent = null, cap = null } = run.spend ?? {};
  const models = run.student ? `${run.student}, taught by ${run.teacher || "its rows"}` : run.teacher && `answers of ${run.teacher}`;
  return el(
    "li", {},
    el(
      "a", { class: "run", href: address([run.name]) },
      el("span", { class: "name" }, el("bdi", {}, run.name), pill(run.status)),
      el("span", { class: spent === null ? "cost none" : "cost" }, spent === null ? (run.teacher ? "no price" : "no teacher") : usd(spent), cap === null ? "" : ` of ${usd(cap)}`),
      el("span", { class: "dots" }, (run.stages ?? []).map(dot)),
      el("span", { class: "when" }, ago(run.touched)),
      el("span", { class: "story", dir: "auto" }, run.fault ?? run.headline ?? models),
    ),
  );
}

const dot = (stage) =>
  el("span", { class: `dot-of ${stage.status}`, title: `${stage.name}: ${stage.status}` },
    el("span", { class: "hidden" }, `${stage.name} ${stage.status}`));

export function showOverview(container, { run }) {
  const part = (name, label) => el("section", { class: name, "aria-label": label });
  const [head, stages, curve, money, newest, log] = [
    el("div", { class: "head" }), part("stage-list", "Stages"), part("curve", "Loss"), part("money", "Cost and faults"),
    part("newest", "Newest answers"), part("log", "Log"),
  ];
  container.replaceChildren(head, stages, el("div", { class: "pair" }, curve, money), newest, log);
  const draw = renderer();
  let state = null;
  const show = (value) => {
    state = value ?? state;
    const { name, status, touched, headline } = state;
    draw(head, { name, status, headline, sign: ago(touched), silent: isSilent(state) }, drawHead);
    draw(stages, [state.stages, run], ([list]) => el("ol", { class: "stages" }, list.map((one) => stage(one, run))));
    draw(curve, state.curve, drawCurve);
    draw(money, [state.spend, state.fault], ([spend, fault]) => [drawSpend(spend), fault && drawFault(fault)]);
    draw(newest, state.newest, drawNewest);
    const isOpen = log.querySelector("details")?.open ?? false;
    draw(log, [state.log, state.files], ([lines, files]) => drawLog(lines, files, run, isOpen));
    curve.hidden = !state.curve;
    newest.hidden = !state.newest.length;
  };
  return { end: poll("/api/run", { run }, RUN_EVERY, show) };
}

const isSilent = ({ status, touched }) => status === "running" && Date.now() / 1000 - touched > SILENT_SECONDS;

function drawHead({ name, status, headline, sign, silent }) {
  const words = silent ? `silent since ${sign}; it may have ended` : `${status === "running" ? "last sign" : "last change"} ${sign}`;
  return [
    el("h1", {}, el("bdi", {}, name), pill(status)),
    el("p", { class: "note" }, words),
    headline && el("p", { class: "evidence", dir: "auto" }, headline),
  ];
}

function stage(one, run) {
  const [key, word] = FIGURES[one.name] ?? [null, ""];
  const figure = one.status === "waiting" ? "–" : key ? `${number(one.counts?.[key])} ${word}` : word;
  const progress = one.progress;
  const share = progress?.total ? progress.done / progress.total : null;
  const counted = progress && `${number(progress.done)}${progress.total ? ` of ${number(progress.total)}` : ""}`;
  const facts = [one.seconds ? duration(one.seconds) : "", one.tokens ? `${number(one.tokens)} tokens` : ""];
  return el(
    "li", { class: `stage ${one.status}` },
    el("h2", {}, one.name, el("span", { class: "hidden" }, `: ${one.status}`)),
    progress
      ? [
        el("p", { class: "figure" }, counted),
        el("progress", { max: 1, value: share, "aria-label": `${progress.title}: ${counted}` }),
        el("p", { class: "note" }, [progress.title === one.name ? "" : progress.title, progress.note].filter(Boolean).join(" · ")),
      ]
      : el("p", { class: "figure" }, one.status === "running" ? "working" : one.status === "failed" ? "failed" : figure),
    facts.filter(Boolean).map((fact) => el("p", { class: "note" }, fact)),
    one.name === "report" && one.status === "done" && el("p", {}, el("a", { href: address([run, "report"]) }, "Read it")),
  );
}

function drawSpend({ usd: spent, in_flight: open, cap, collect, collect_cap: collectCap }) {
  if (spent === null) return el("div", { class: "box" }, el("h2", {}, "Cost"), el("p", { class: "note" }, "Nothing here has a price."));
  const bar = (value, most, label) => [
    el("progress", { max: 1, value: most > 0 ? Math.min(1, value / most) : 1, class: value > 0.8 * most ? "near" : "", "aria-label": label }),
    el("p", { class: "note" }, label),
  ];
  return el(
    "div", { class: "box" },
    el("h2", {}, "Cost"),
    el("p", { class: "big" }, usd(spent)),
    open > 0 && el("p", { class: "note" }, `and at most ${usd(open)} for what is in flight`),
    cap === null ? el("p", { class: "note" }, "without a cap") : bar(spent, cap, `of ${usd(cap)} for the run`),
    typeof collectCap === "number" && bar(collect, collectCap, `collect: ${usd(collect)} of ${usd(collectCap)}`),
  );
}

const drawFault = ({ what, text: line, at }) =>
  el("div", { class: "box fault" },
    el("h2", {}, "Last fault"),
    el("p", { class: "note" }, [what, at && at.slice(11, 19)].filter(Boolean).join(" · ")),
    el("p", { dir: "auto" }, line));

function drawNewest(list) {
  const cards = list.map(({ what, prompt, texts }) =>
    el("article", { class: "sample" },
      el("p", { class: "note" }, what),
      text(prompt, "asked"),
      el("div", { class: "columns" }, Object.entries(texts).map(([who, said]) =>
        el("div", { class: `side ${who}` }, el("h3", {}, who), text(said || "(nothing)"))))));
  return list.length ? [el("h2", {}, "Newest answers"), el("div", { class: "samples" }, cards)] : [];
}

function drawLog(lines, files, run, isOpen) {
  const links = files.map(({ name, bytes: size }) =>
    el("li", {}, el("a", { href: address([run, "rows"], { file: name }) }, name), " ", el("span", { class: "note" }, bytes(size))));
  return [
    links.length > 0 && [el("h2", {}, "Files"), el("ul", { class: "file-list" }, links)],
    el("details", { class: "card", open: isOpen },
      el("summary", {}, "Log"),
      el("pre", { class: "code", tabindex: "0", "aria-label": "The last lines of run.log" }, lines.join("\n"))),
  ];
}

// --- the loss

function ticks(low, high) {
  const rough = Math.max((high - low) / 4, 1e-6);
  const power = 10 ** Math.floor(Math.log10(rough));
  const step = [1, 2, 5, 10].map((factor) => factor * power).find((one) => one >= rough * 0.999);
  const first = Math.floor(low / step);
  const count = Math.max(1, Math.ceil(high / step) - first);
  return Array.from({ length: count + 1 }, (_, index) => +((first + index) * step).toPrecision(10));
}

function drawCurve(curve) {
  if (!curve) return [];
  const all = [...curve.train, ...curve.eval];
  const marks = ticks(Math.min(...all.map(([, loss]) => loss)), Math.max(...all.map(([, loss]) => loss)));
  const [bottom, top] = [marks[0], marks[marks.length - 1]];
  const steps = Math.max(curve.last.steps ?? 0, ...all.map(([step]) => step), 2);
  const x = (step) => +(((step - 1) / (steps - 1)) * 100).toFixed(2);
  const y = (loss) => +((1 - (loss - bottom) / (top - bottom)) * 100).toFixed(2);
  const line = (points, kind) =>
    svg("svg", { class: kind, viewBox: "0 0 100 100", preserveAspectRatio: "none", width: "100%", height: "100%", overflow: "visible" },
      svg("polyline", { points: points.map(([step, loss]) => `${x(step)},${y(loss)}`).join(" ") }));
  const dots = (points, kind) =>
    svg("g", { class: kind }, points.map(([step, loss]) => svg("circle", { class: "mark", cx: `${x(step)}%`, cy: `${y(loss)}%`, r: 3.5 })));
  const [step, loss] = curve.train[curve.train.length - 1];
  const held = curve.eval.length ? `; on held-out rows ${curve.eval[curve.eval.length - 1][1].toFixed(3)}` : "";
  const said = `Step ${number(step)} of ${number(steps)}: ${loss.toFixed(3)} nats per token${held}`;
  return [
    el("h2", {}, "Loss"),
    el("p", { class: "note", id: "loss" }, said),
    el("div", { class: "plot" },
      svg("svg", { class: "y-axis", height: "100%", width: "100%", overflow: "visible", "aria-hidden": "true" },
        marks.map((mark) => svg("text", { x: "100%", y: `${y(mark)}%`, dy: 4, "text-anchor": "end" }, String(mark)))),
      svg("svg", { class: "area", height: "100%", width: "100%", overflow: "visible", role: "img", "aria-labelledby": "loss" },
        marks.map((mark) => svg("line", { class: "grid", x1: 0, x2: "100%", y1: `${y(mark)}%`, y2: `${y(mark)}%` })),
        line(curve.train, "training"),
        curve.eval.length > 0 && [line(curve.eval, "evaluation"), dots(curve.eval, "evaluation")],
        dots(curve.train.slice(-1), "training")),
      el("div", { class: "x-name" }, curve.eval.length ? [el("span", { class: "evaluation-key" }, "dashed: held-out rows"), ` · ${number(steps)} steps`] : `${number(steps)} steps`)),
  ];
}
