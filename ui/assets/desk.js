// The raters' page: shows what the server lends, takes the vote, and shows the next.
// Texts of models and raters go into the page as text; as HTML only what the server has sanitised.

import { Chat } from "./chat.js";
import { restoreColours, toggleColours } from "./colours.js";
import { Ranking } from "./ranking.js";

const LETTERS = "ABCDEFGHI";
const VIEWS = ["loading", "campaigns", "guidelines", "over", "work"];
// A refusal after which the item is not this rater's any more.
const GONE = new Set(["already_voted", "expired", "unknown", "not_yours", "taken", "revealed"]);
const KINDS = {
  pair: "two answers at a time",
  ranking: "several answers to put in order",
  chat: "you write the prompts",
  arena: "you write the prompts, and see who answered after the vote",
};
const OVER = {
  closed: "This campaign is closed",
  paused: "This campaign is paused",
};

export function start(element, server) {
  return new Desk(element, server).open();
}

export function make(tag, attributes = {}, ...children) {
  const node = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value !== false && value !== null) node.setAttribute(name, value === true ? "" : value);
  }
  node.append(...children);
  return node;
}

class Desk {
  constructor(element, server) {
    this.element = element;
    this.server = server;
    this.campaign = null;
    this.shown = null;
    this.upcoming = null; // the next item, while the names of the last are shown
    this.busy = true;
    this.since = 0;
    this.ranking = new Ranking(this);
    this.chat = new Chat(this);
    this.listen();
  }

  get(id) {
    return this.element.querySelector(`#${id}`);
  }

  // --- the server -------------------------------------------------------------------------

  async ask(name, data = {}) {
    const said = await this.server[name](data); // nothing, when Gradio could not reach the server
    if (!said) return { refused: "trouble", message: await this.trouble() };
    if (said.refused === "inactive") location.assign("/login");
    return said;
  }

  // Why a request failed; leads to the log-in when the session is over.
  async trouble() {
    const reply = await fetch("/session").catch(() => null);
    if (reply && reply.status === 401) location.assign(`/login?next=${encodeURIComponent(here())}`);
    if (reply && reply.status === 429) return "Too many requests; wait a moment.";
    return "The server does not answer. Try again.";
  }

  // --- views ------------------------------------------------------------------------------

  async open() {
    restoreColours();
    const session = await fetch("/session").then((reply) => reply.json()).catch(() => null);
    if (session) this.get("me").textContent = session.name;
    const said = await this.ask("campaigns");
    if (said.refused) return this.over(said.message, "Something is wrong");
    this.flags = said.flags;
    const wanted = new URLSearchParams(location.search).get("campaign");
    const known = said.campaigns;
    if (wanted) return this.begin(wanted);
    if (known.length === 1) return this.begin(known[0].name);
    if (known.length === 0) return this.over("Nothing is to be rated at the moment.", "No campaign");
    this.get("campaign-list").replaceChildren(...known.map((each) => this.campaignEntry(each)));
    return this.view("campaigns");
  }

  campaignEntry(campaign) {
    const kind = campaign.live || campaign.mode === "ranking" ? campaign.mode : "pair";
    const name = make("span", {}, make("b", {}, campaign.name), make("small", { class: "quiet" }, KINDS[kind]));
    const button = make("button", { type: "button", onclick: () => this.begin(campaign.name) }, name);
    if (!campaign.live) button.append(make("span", { class: "quiet" }, `${count(campaign.left)} left`));
    return make("li", {}, button);
  }

  async begin(name) {
    const said = await this.ask("begin", { campaign: name });
    if (said.refused) return this.refused(said);
    this.campaign = said.campaign;
    this.get("where").textContent = said.campaign.name;
    this.get("guidelines-text").innerHTML = said.campaign.guidelines;
    this.get("guidelines-button").hidden = this.get("keys-button").hidden = false;
    this.get("undo").hidden = !said.campaign.blind;
    history.replaceState(null, "", `?campaign=${encodeURIComponent(name)}`);
    document.title = `${said.campaign.name} – Ratings`;
    this.received = said;
    // Whoever has read these guidelines goes on; changed ones are shown again.
    if (localStorage.getItem(this.readKey()) === said.campaign.guidelines) return this.enter();
    return this.view("guidelines");
  }

  // From the guidelines to the item that came with them, and later to the next.
  enter() {
    const said = this.received;
    this.received = null;
    return said ? this.show(said) : this.next();
  }

  readKey() {
    return `guidelines read by ${this.get("me").textContent}: ${this.campaign.name}`;
  }

  view(name) {
    for (const id of VIEWS) this.get(id).hidden = id !== name;
    this.get("vote").hidden = name !== "work";
    this.element.scrollIntoView();
    const title = this.get(`${name}-title`);
    if (title) title.focus({ preventScroll: true });
  }

  say(text, trouble = false) {
    this.get("status").textContent = text;
    this.get("status").classList.toggle("trouble", trouble);
  }

  over(text, title = "Nothing left for you here") {
    this.shown = null;
    this.busy = false;
    this.get("undo").disabled = false;
    this.get("left").textContent = "";
    this.get("over-title").textContent = title;
    this.get("over-text").textContent = text;
    this.get("look-again").hidden = !this.campaign;
    this.view("over");
  }

  refused(said) {
    const title = OVER[said.refused];
    if (title || !this.campaign) return this.over(said.message, title || "Something is wrong");
    this.say(said.message, true);
    if (GONE.has(said.refused)) return this.next(said.message);
    return this.enable();
  }

  async next(message) {
    const said = await this.ask("next_item", { campaign: this.campaign.name });
    if (said.refused) return this.refused(said);
    this.show(said);
    if (message) this.say(message, true);
  }

  // --- an item ----------------------------------------------------------------------------

  show(said) {
    this.get("names").hidden = true;
    this.get("next").hidden = true;
    this.upcoming = null;
    if (this.campaign.live) return this.chat.show(said.chat);
    if (!said.shown) return this.over("You have seen every item of this campaign that wants you.");
    const item = said.shown;
    this.shown = item;
    this.get("left").textContent = `${count(item.left)} left`;
    this.showPrompt(item.prompt);
    this.showAnswers(item.answers.map((text) => () => written(text, item.html)));
    this.get("composer").hidden = true;
    const ranks = item.answers.length > 2;
    this.get("answers").classList.toggle("many", ranks);
    this.get("scale").hidden = this.get("both-bad").hidden = ranks;
    this.get("ranked").hidden = !ranks;
    if (ranks) this.ranking.show(item.answers.length);
    this.restoreDraft();
    this.since = performance.now();
    this.view("work");
    this.enable();
    this.get("prompt-title").focus({ preventScroll: true });
  }

  showPrompt(turns) {
    const alone = turns.length === 1;
    this.get("prompt").hidden = turns.length === 0;
    this.get("chat-title").hidden = turns.length > 0;
    this.get("turns").replaceChildren(
      ...turns.map((turn) => {
        const text = make("p", { class: "text plain" }, turn.text);
        const label = make("h2", { class: "label" }, turn.role);
        return make("div", { class: "turn" }, ...(alone ? [text] : [label, text]));
      }),
    );
    scrollable(this.get("turns"), "Prompt");
  }

  showAnswers(bodies) {
    this.get("answers").replaceChildren(...bodies.map((body, place) => this.answer(body, place)));
  }

  answer(body, place) {
    const letter = LETTERS[place];
    const head = make("header", {}, make("h2", { id: `title-${letter}` }, `Answer ${letter}`));
    return make(
      "article",
      { class: "answer", id: `answer-${letter}`, "aria-labelledby": `title-${letter}` },
      head,
      make("div", { class: "body" }, body()),
      this.flagsOf(letter),
    );
  }

  flagsOf(letter) {
    const number = make("span", { class: "count", hidden: true });
    const summary = make("summary", {}, `Flag answer ${letter}`, number);
    const boxes = Object.entries(this.flags).map(([key, text]) =>
      make("label", {}, make("input", { type: "checkbox", value: key, name: `flag-${letter}` }), text),
    );
    const legend = make("legend", {}, `What is wrong with answer ${letter}?`);
    const fields = make("fieldset", {}, legend, ...boxes);
    const flags = make("details", { class: "flags" }, summary, fields);
    flags.addEventListener("change", () => {
      const set = flags.querySelectorAll(":checked").length;
      number.hidden = set === 0;
      number.textContent = set;
      this.saveDraft();
    });
    return flags;
  }

  chosenFlags() {
    return [...this.element.querySelectorAll(".answer")].map((answer) =>
      [...answer.querySelectorAll(".flags :checked")].map((box) => box.value),
    );
  }

  // What is typed and flagged survives a reload, in this tab.
  saveDraft() {
    if (!this.shown) return;
    const draft = { flags: this.chosenFlags(), comment: this.get("comment").value };
    sessionStorage.setItem("draft", JSON.stringify({ [this.shown.assignment]: draft }));
  }

  restoreDraft() {
    const drafts = JSON.parse(sessionStorage.getItem("draft") || "{}");
    const draft = drafts[this.shown.assignment] || { flags: [], comment: "" };
    this.get("comment").value = draft.comment;
    this.element.querySelectorAll(".answer").forEach((answer, place) => {
      for (const flag of draft.flags[place] || [])
        answer.querySelector(`input[value="${flag}"]`).checked = true;
      answer.querySelector(".flags").dispatchEvent(new Event("change"));
    });
  }

  // --- voting -----------------------------------------------------------------------------

  enable() {
    this.busy = false;
    const dead = Boolean(this.upcoming);
    this.get("comment").hidden = dead;
    for (const button of this.element.querySelectorAll("[data-choice]")) {
      button.disabled = dead || (this.campaign.live && !this.chat.canVote());
      button.classList.remove("chosen");
    }
    this.get("undo").disabled = false;
    if (!this.get("ranked").hidden) this.ranking.refresh();
  }

  disable(choice) {
    this.busy = true;
    for (const button of this.element.querySelectorAll("[data-choice], #submit-ranks, #undo")) {
      button.disabled = true;
      button.classList.toggle("chosen", Boolean(choice) && button.dataset.choice === choice);
    }
  }

  async vote(choice, ranks = null) {
    if (this.busy || !this.shown || this.upcoming) return;
    this.disable(choice);
    const said = await this.ask("vote", {
      campaign: this.campaign.name,
      assignment: this.shown.assignment,
      choice,
      ranks,
      flags: this.chosenFlags(),
      comment: this.get("comment").value,
      seconds: (performance.now() - this.since) / 1000,
    });
    if (!said.saved) return this.refused(said);
    sessionStorage.removeItem("draft");
    if (said.refused) return this.refused(said);
    if (said.names) return this.reveal(said, choice);
    this.show(said);
    this.say(choice === "skip" ? "Skipped." : "Saved.");
  }

  reveal(said, choice) {
    this.upcoming = said;
    this.busy = false;
    this.get("composer").hidden = true;
    said.names.forEach((name, place) => {
      const title = this.get(`title-${LETTERS[place]}`);
      title.after(make("span", { class: "name" }, name));
    });
    for (const box of this.element.querySelectorAll(".flags input")) box.disabled = true;
    this.get("comment").hidden = true; // the vote stands, with the comment it had
    const won = { a_much: "A", a: "A", b: "B", b_much: "B" }[choice];
    if (won) this.get(`answer-${won}`).classList.add("won");
    this.get("names").hidden = false;
    this.get("names").textContent = said.names.map((name, k) => `${LETTERS[k]} was ${name}`).join(", ");
    this.get("next").hidden = false;
    this.get("next").focus();
    this.say(`Saved. ${this.get("names").textContent}.`);
  }

  goOn() {
    if (!this.upcoming) return;
    const said = this.upcoming;
    this.say("");
    this.show(said);
  }

  async undo() {
    if (this.busy || !this.campaign || this.get("undo").hidden) return;
    this.disable();
    const said = await this.ask("undo_vote", { campaign: this.campaign.name });
    if (said.refused) {
      this.say(said.message, true);
      return this.shown ? this.enable() : undefined;
    }
    this.show(said);
    this.say("Your last vote is taken back. Choose again.");
  }

  // --- keys and clicks --------------------------------------------------------------------

  listen() {
    const on = (id, what, event = "click") => this.get(id).addEventListener(event, what);
    this.get("vote").addEventListener("click", (event) => {
      const button = event.target.closest("[data-choice]");
      if (button) this.vote(button.dataset.choice);
    });
    on("next", () => this.goOn());
    on("undo", () => this.undo());
    on("look-again", () => this.next());
    on("guidelines-button", () => this.guidelines());
    on("begin", () => {
      localStorage.setItem(this.readKey(), this.campaign.guidelines);
      return this.shown ? this.view("work") : this.enter();
    });
    on("keys-button", () => this.keys());
    on("colours", () => toggleColours());
    this.get("use-keys").checked = localStorage.getItem("keys") !== "off";
    on("use-keys", (event) => localStorage.setItem("keys", event.target.checked ? "on" : "off"), "change");
    on("comment", () => this.saveDraft(), "input");
    document.addEventListener("keydown", (event) => this.key(event));
  }

  // The flags of the next answer; of the one at hand, when ranking.
  flag() {
    const all = [...this.element.querySelectorAll(".flags")];
    const at = all.findIndex((flags) => flags.contains(document.activeElement));
    const next = this.get("ranked").hidden || at >= 0 ? (at + 1) % all.length : this.ranking.active;
    all[next].open = true;
    all[next].querySelector("input").focus();
  }

  guidelines() {
    if (!this.get("guidelines").hidden && this.shown) return this.view("work");
    this.get("begin").textContent = this.shown ? "Go on" : "Begin";
    return this.view("guidelines");
  }

  keys() {
    const names = this.campaign && !this.campaign.blind ? [["N", "Next, after names are shown"]] : [];
    const both = [
      ["S", "Skip"], ["U", "Undo the last vote"], ["X", "Flag an answer; again for the next answer"],
      ["M", "Write a comment"], ["G", "Guidelines, and back"],
    ];
    const entries = [
      ["1 … 5", "A much better … B much better"], ["T", "Tie"], ["B", "Both bad"], ...both, ...names,
    ];
    const count = this.shown && this.shown.answers ? this.shown.answers.length : 0;
    const ranks = [
      [`A … ${LETTERS[count - 1]}`, "Go to an answer"],
      [`1 … ${count}`, "Its rank; 1 is best, equal ranks are ties"], ["Enter", "Save the ranking"],
      ...both.filter(([key]) => !LETTERS.slice(0, count).includes(key)),
    ];
    const list = count > 2 ? ranks : entries;
    this.get("key-list").replaceChildren(
      ...list.flatMap(([key, what]) => [make("dt", {}, make("kbd", {}, key)), make("dd", {}, what)]),
    );
    this.get("keys").showModal();
  }

  key(event) {
    const typing = event.target.closest("textarea, select, input:not([type=checkbox])");
    if (event.key === "Escape" && typing) return typing.blur();
    if (typing || event.ctrlKey || event.metaKey || event.altKey || event.repeat) return undefined;
    if (this.get("keys").open || !this.get("use-keys").checked) return undefined;
    const key = event.key.toLowerCase();
    const done = (!this.get("work").hidden && this.workKey(key, event)) || this.commonKey(key);
    if (done) event.preventDefault();
    return undefined;
  }

  commonKey(key) {
    if (key === "?") this.keys();
    else if (key === "g" && this.campaign) this.guidelines();
    else if (key === "u") this.undo();
    else return false;
    return true;
  }

  workKey(key, event) {
    const choices = { 1: "a_much", 2: "a", 3: "tie", 4: "b", 5: "b_much", t: "tie", b: "both_bad", s: "skip" };
    if (key === "m" && !this.upcoming) this.get("comment").focus();
    else if (key === "x" && !this.upcoming) this.flag();
    else if (key === "n" && this.upcoming) this.goOn();
    else if (key === "s") this.voteIfAlive("skip");
    else if (!this.get("ranked").hidden) return this.ranking.key(key, event);
    else if (choices[key]) this.voteIfAlive(choices[key]);
    else return false;
    return true;
  }

  voteIfAlive(choice) {
    const button = this.element.querySelector(`[data-choice="${choice}"]`);
    if (!button.disabled) this.vote(choice);
  }
}

export function written(text, html) {
  if (!html) return make("div", { class: "text plain" }, text);
  const node = make("div", { class: "text rich" });
  node.innerHTML = text; // sanitised by the server
  return node;
}

function scrollable(node, label) {
  // A part that scrolls must be reachable by keyboard.
  const more = node.scrollHeight > node.clientHeight + 1;
  if (more) Object.entries({ tabindex: "0", role: "region", "aria-label": label }).forEach(([k, v]) => node.setAttribute(k, v));
  else ["tabindex", "role", "aria-label"].forEach((name) => node.removeAttribute(name));
}

function count(number) {
  return number >= 500 ? "500 or more" : String(number);
}

function here() {
  return location.pathname + location.search;
}
