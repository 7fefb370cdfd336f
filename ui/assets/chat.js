// A conversation with two models: the rater's prompt, both answers as they are written, then a vote.

import { make, written } from "./desk.js";

export class Chat {
  constructor(desk) {
    this.desk = desk;
    this.chat = null;
    this.writing = false;
    const form = desk.get("composer");
    form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.send();
    });
    desk.get("say").addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.send();
    });
  }

  canVote() {
    return Boolean(this.chat && this.chat.turns.length) && !this.writing;
  }

  show(chat) {
    const { desk } = this;
    this.chat = chat;
    desk.shown = chat;
    desk.get("left").textContent = "";
    desk.showPrompt([]);
    desk.get("ranked").hidden = true;
    desk.get("scale").hidden = desk.get("both-bad").hidden = false;
    desk.get("answers").classList.remove("many");
    desk.get("answers").hidden = !chat;
    desk.get("comment").value = "";
    if (chat) {
      desk.showAnswers([0, 1].map((side) => () => this.side(chat, side)));
      desk.restoreDraft();
    } else {
      desk.get("answers").replaceChildren();
    }
    desk.get("composer").hidden = false;
    desk.get("say-label").textContent = chat ? "Go on, or vote below" : "Your prompt";
    desk.since = performance.now();
    desk.view("work");
    desk.get("vote").hidden = !chat;
    desk.enable();
    if (!chat) desk.get("say").focus();
  }

  side(chat, side) {
    const parts = chat.turns.flatMap((turn) => [
      make("p", { class: "said plain" }, turn.text),
      written(turn.answers[side], chat.html),
    ]);
    return make("div", {}, ...parts);
  }

  async send() {
    const { desk } = this;
    const text = desk.get("say").value.trim();
    if (!text || this.writing || desk.upcoming) return;
    const began = desk.since;
    this.writing = true;
    this.compose(false);
    desk.say("The models answer …");
    const before = this.chat;
    const turns = before ? before.turns : [];
    const draw = (answers) => {
      const chat = { turns: [...turns, { text, answers: ["", ""] }], html: Boolean(before && before.html) };
      desk.get("answers").hidden = false;
      desk.showAnswers([0, 1].map((side) => () => {
        const body = this.side(chat, side);
        body.lastElementChild.replaceWith(make("div", { class: "text plain cursor" }, answers[side]));
        return body;
      }));
    };
    draw(["", ""]);
    desk.disable();
    const failed = await this.stream(text, before, draw).catch(() => desk.trouble());
    this.writing = false;
    this.compose(true);
    if (failed) {
      this.show(before);
      desk.say(failed, true);
      return;
    }
    desk.get("say").value = "";
    this.show(this.chat);
    desk.since = before ? began : performance.now();
    desk.say("Vote, or go on.");
  }

  async stream(text, before, draw) {
    const reply = await fetch("/chat/say", {
      method: "POST",
      headers: { "Content-Type": "application/json" },
      body: JSON.stringify({
        campaign: this.desk.campaign.name,
        assignment: before ? before.assignment : null,
        text,
      }),
    });
    if (!reply.ok) return this.desk.trouble();
    const reader = reply.body.pipeThrough(new TextDecoderStream()).getReader();
    let rest = "";
    for (;;) {
      const { value, done } = await reader.read();
      if (done) return "The answer broke off. Try again.";
      const lines = (rest + value).split("\n");
      rest = lines.pop();
      for (const line of lines) {
        const said = JSON.parse(line);
        if (said.refused) return said.message;
        if (said.chat) {
          this.chat = said.chat;
          return null;
        }
        draw(said.answers);
      }
    }
  }

  compose(alive) {
    this.desk.get("say").disabled = !alive;
    this.desk.get("send").disabled = !alive;
  }
}
