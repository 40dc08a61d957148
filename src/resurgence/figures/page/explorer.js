(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const PAGE = 6, MOST = 3, HEAD = "#explorer:";
  const ROLES = {erase: "erased concepts", synonym: "their synonyms", retain: "retained concepts",
                 "synonym-retain": "synonyms of retained", general: "general prompts"};
  const byId = name => document.getElementById(name);
  const make = (tag, values, ...children) => {
    const element = Object.assign(document.createElement(tag), values);
    element.append(...children);
    return element;
  };
  const tasks = data.tasks.filter(task => task.rows.length);
  const seen = new Set();  // images of sensitive tasks that were clicked
  let state, order = [], open = 0;

  if (!tasks.length) {
    byId("x-status").textContent = "No image fits into this page; the images are in results/images.";
    byId("explorer").querySelectorAll(".controls, .pager, .hint").forEach(part => { part.hidden = true; });
    return;
  }

  const taskOf = () => tasks.find(task => task.name === state.task);
  const setsOf = () => state.models.map(name => taskOf().sets.findIndex(set => set.name === name));
  const rolesOf = task => [...new Set(task.rows.map(row => row.role))];

  // base, erased model and last step of each fine-tuned model
  function chainsOf(task) {
    const lasts = new Map(task.sets.filter(set => set.state === "finetuned").map(set => [set.name.split("@")[0], set]));
    return [...lasts.values()].map(last => {
      const erased = task.sets.filter(set => set.state === "erased" && last.name.startsWith(set.name + "/")).pop();
      return [task.sets[0], erased, last].filter(Boolean);
    });
  }

  const firstModels = task =>
    (chainsOf(task)[0] || [task.sets[0], task.sets.find(set => set.state === "erased")].filter(Boolean)).map(set => set.name);

  // a state is valid in itself whatever the address says: unknown names are left out
  function read() {
    const values = new URLSearchParams(location.hash.startsWith(HEAD) ? location.hash.slice(HEAD.length) : "");
    const task = tasks.find(each => each.name === values.get("t")) || tasks[0];
    const known = new Set(task.sets.map(set => set.name));
    const models = [...new Set((values.get("m") || "").split(",").filter(name => known.has(name)))].slice(0, MOST);
    const roles = rolesOf(task);
    state = {task: task.name, models: models.length ? models : firstModels(task),
             role: roles.includes(values.get("r")) ? values.get("r") : roles[0],
             page: Math.max(0, parseInt(values.get("p"), 10) || 0)};
  }

  function write() {
    const values = [["t", state.task], ["m", state.models.join(",")], ["r", state.role], ["p", state.page]];
    const text = values.map(([key, value]) => key + "=" + encodeURIComponent(value).replace(/%2F/g, "/").replace(/%2C/g, ","));
    history.replaceState(null, "", HEAD + text.join("&"));
  }

  // worst first: an erased concept that the last model shows most, a retained one that it shows least
  function sorted() {
    const number = setsOf().at(-1), lost = ["retain", "synonym-retain", "general"].includes(state.role);
    const value = row => row.scores[number].at(-1);
    return taskOf().rows.filter(row => row.role === state.role).sort((a, b) => {
      const x = value(a), y = value(b);
      if (x === y) return a.n - b.n;
      if (x === null || y === null) return x === null ? 1 : -1;
      return lost ? x - y : y - x;
    });
  }

  function chip(text, pressed, act) {
    const button = make("button", {type: "button", textContent: text});
    button.setAttribute("aria-pressed", pressed);
    button.addEventListener("click", act);
    return button;
  }

  function change(values) {
    Object.assign(state, values);
    write();
    draw();
  }

  // after three models a click begins a new choice, so any two are two clicks away from the three at the beginning
  function toggle(name) {
    const chosen = state.models.length < MOST ? state.models : [];
    const models = chosen.includes(name) ? chosen.filter(each => each !== name) : [...chosen, name];
    if (models.length) change({models, page: 0});
  }

  function chips(place, buttons) {
    const held = byId(place), at = [...held.children].indexOf(document.activeElement);
    held.replaceChildren(...buttons);
    if (at >= 0) held.children[Math.min(at, buttons.length - 1)].focus();
  }

  function shown(value, isYesNo) {
    if (typeof value !== "number") return String(value);
    if (isYesNo && (value === 0 || value === 1)) return value ? "yes" : "no";
    if (value !== 0 && Math.abs(value) < 0.001) return value < 0 ? "> -0.001" : "< 0.001";
    return value.toFixed(Math.abs(value) < 10 ? 3 : 1);
  }

  function scoreList(task, row, number) {
    const items = task.columns.map(([name, title, isYesNo], at) => [name, title, row.scores[number][at], isYesNo])
      .filter(([name, , value]) => value !== null && (name !== "blank" || value === 1));
    return make("ul", {className: "scores"}, ...items.map(([name, title, value, isYesNo]) =>
      make("li", {}, title + " ", make("b", {textContent: shown(value, isYesNo)}))));
  }

  const isVeiled = key => Boolean(taskOf().sensitive) && !seen.has(key);

  // a button where a click does something: it shows a blurred image, then acts
  function framed(image, key, act) {
    if (!act && !isVeiled(key)) return image;
    const part = make("button", {type: "button", className: "picture"}, image);
    Object.assign(part.dataset, {key, does: act ? "Enlarge: " : ""});
    part.addEventListener("click", () => {
      if (isVeiled(key)) {
        seen.add(key);
        veil();
      } else if (act) act();
    });
    return part;
  }

  // blurs what was not clicked; of one image in a row and in the dialog, both
  function veil() {
    byId("explorer").querySelectorAll(".picture").forEach(part => {
      const hidden = isVeiled(Number(part.dataset.key));
      part.classList.toggle("veiled", hidden);
      part.setAttribute("aria-label", (hidden ? "Show the image: " : part.dataset.does) + part.firstChild.alt);
    });
    byId("x-veils").hidden = !taskOf().sensitive;
    byId("x-unveil").textContent = byId("x-rows").querySelector(".veiled") ? "Show all images" : "Blur all images";
  }

  function veilAll() {
    const shows = byId("x-rows").querySelector(".veiled");
    taskOf().rows.forEach(row => row.images.forEach(key => shows ? seen.add(key) : seen.delete(key)));
    veil();
  }

  function pictures(row, act) {
    const task = taskOf(), sets = setsOf(), grid = make("div", {className: "models"});
    grid.style.setProperty("--models", sets.length);
    sets.forEach(number => {
      const set = task.sets[number], image = make("img", {
        alt: `${row.prompt}, seed ${row.seed}, by ${set.title}`,
        src: "data:image/webp;base64," + data.images[row.images[number]]});
      const part = framed(image, row.images[number], act);
      grid.append(make("figure", {}, part, make("figcaption", {textContent: set.title}), scoreList(task, row, number)));
    });
    return grid;
  }

  function commands(row) {
    const task = taskOf(), lines = [];
    setsOf().forEach(number => {
      const set = task.sets[number], [file, start] = set.images.filter(([, first]) => first <= row.n).at(-1);
      lines.push([set.title, "sample", file, row.n - start + 1], [set.title, "score", set.scores, row.n + 1]);
    });
    const entries = lines.map(([title, rule, file, at]) => make("p", {},
      `${title}: ${file}, row ${at}, written by the rule `, make("code", {textContent: rule}),
      make("code", {className: "command", textContent: `resurgence provenance ${file} --row ${at}`})));
    return make("details", {className: "row-source"}, make("summary", {textContent: "Sources"}), ...entries);
  }

  function enlarge(at) {
    open = Math.min(Math.max(at, 0), order.length - 1);
    const row = order[open];
    byId("x-large-title").textContent = `${row.prompt} (row ${open + 1} of ${order.length})`;
    byId("x-large-images").replaceChildren(pictures(row), commands(row));
    veil();
    byId("x-up").disabled = open === 0;
    byId("x-down").disabled = open === order.length - 1;
    if (!byId("x-large").open) byId("x-large").showModal();
  }

  function draw() {
    const task = taskOf();
    order = sorted();
    const pages = Math.max(1, Math.ceil(order.length / PAGE));
    state.page = Math.min(state.page, pages - 1);
    const from = state.page * PAGE, last = task.sets[setsOf().at(-1)];
    chips("x-tasks", tasks.map(each => chip(each.name, each === task, () => change(
      {task: each.name, models: firstModels(each), role: rolesOf(each)[0], page: 0}))));
    chips("x-chains", chainsOf(task).map(chain => chip(chain.map(set => set.title).join(" | "),
      chain.map(set => set.name).join() === state.models.join(), () => change({models: chain.map(set => set.name), page: 0}))));
    chips("x-models", task.sets.map(set => chip(set.title, state.models.includes(set.name), () => toggle(set.name))));
    chips("x-roles", rolesOf(task).map(role => chip(ROLES[role] || role, role === state.role, () => change({role, page: 0}))));
    const names = data.order.filter(name => task.columns.some(([column]) => column === name)).map(name => name.replaceAll("_", " "));
    const lost = ["retain", "synonym-retain", "general"].includes(state.role);
    byId("x-order").textContent = names.length
      ? `The worst comes first: where ${last.title} shows the concept ${lost ? "least" : "most"} (mean of ${names.join(", ")}).` : "";
    byId("x-rows").replaceChildren(...order.slice(from, from + PAGE).map((row, number) => make("li", {},
      make("h3", {}, row.prompt + " ", make("small", {textContent: `seed ${row.seed}`})),
      pictures(row, () => enlarge(from + number)), commands(row))));
    veil();
    byId("x-status").textContent = task.left
      ? `${task.left} of ${task.left + task.rows.length} prompts of ${task.name} ${task.left === 1 ? "is" : "are"} left out to keep this page small; all images are in results/images.` : "";
    byId("x-page").textContent = `rows ${from + 1} to ${Math.min(from + PAGE, order.length)} of ${order.length}`;
    byId("x-previous").disabled = state.page === 0;
    byId("x-next").disabled = state.page === pages - 1;
  }

  byId("x-previous").addEventListener("click", () => change({page: state.page - 1}));
  byId("x-next").addEventListener("click", () => change({page: state.page + 1}));
  byId("x-unveil").addEventListener("click", veilAll);
  byId("x-up").addEventListener("click", () => enlarge(open - 1));
  byId("x-down").addEventListener("click", () => enlarge(open + 1));
  byId("x-large").addEventListener("keydown", event => {
    const by = {ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1}[event.key];
    if (by) {
      event.preventDefault();
      enlarge(open + by);
    }
  });
  function restore() {
    read();
    draw();
    if (location.hash.startsWith(HEAD)) byId("explorer").scrollIntoView();
  }
  addEventListener("hashchange", () => { if (location.hash.startsWith(HEAD)) restore(); });
  restore();
})();
