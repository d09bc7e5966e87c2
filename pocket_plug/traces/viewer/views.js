// The views of a trace, as tabs: waterfall, table by name, errors.

const VIEWS = ["waterfall", "names", "failures"];

class Views {
  constructor({ onChange }) {
    this.onChange = onChange;
    this.now = VIEWS[0];
    for (const name of VIEWS) {
      this.tab(name).addEventListener("click", () => this.show(name));
      this.tab(name).addEventListener("keydown", (event) => {
        const by = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
        if (!by) return;
        event.preventDefault();
        event.stopPropagation();
        this.next(by);
        this.tab(this.now).focus();
      });
    }
  }

  tab(name) {
    return document.getElementById(`tab-${name}`);
  }

  next(by = 1) {
    this.show(VIEWS[(VIEWS.indexOf(this.now) + by + VIEWS.length) % VIEWS.length]);
  }

  show(name) {
    this.now = name;
    for (const each of VIEWS) {
      this.tab(each).setAttribute("aria-selected", String(each === name));
      this.tab(each).setAttribute("tabindex", each === name ? 0 : -1);
      document.getElementById(each).hidden = each !== name;
    }
    document.body.dataset.view = name;
    this.onChange(name);
  }
}
