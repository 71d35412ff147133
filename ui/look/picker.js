// Adapters with a switch and a slider each. The value is a list of {id, name, trigger, picture, on, strength}.
const root = element.querySelector('.picker');
const make = (tag, className, text) => {
  const made = document.createElement(tag);
  if (className) made.className = className;
  if (text !== undefined) made.textContent = text;
  return made;
};
const change = (id, values) => {
  props.value = (props.value || []).map((one) => (one.id === id ? { ...one, ...values } : one));
  trigger('input');
};
function one(adapter) {
  const row = make('div', adapter.on ? 'one' : 'one off');
  const picture = adapter.picture ? make('img') : make('span', 'nopic', adapter.name.slice(0, 1).toUpperCase());
  if (adapter.picture) { picture.src = adapter.picture; picture.alt = ''; picture.loading = 'lazy'; }
  const about = make('div');
  about.append(make('div', 'name', adapter.name), make('div', 'trigger', adapter.trigger || ''));
  const box = make('input');
  box.type = 'checkbox';
  box.checked = adapter.on;
  box.setAttribute('aria-label', adapter.name);
  box.addEventListener('change', () => change(adapter.id, { on: box.checked }));
  row.append(picture, about, box);
  if (adapter.on) {
    const slide = make('div', 'slide');
    const range = make('input');
    const shown = make('output', '', Number(adapter.strength).toFixed(2));
    Object.assign(range, { type: 'range', min: '-1', max: '2', step: '0.05', value: adapter.strength });
    range.setAttribute('aria-label', adapter.label || adapter.name);
    range.addEventListener('input', () => { shown.textContent = Number(range.value).toFixed(2); });
    range.addEventListener('change', () => change(adapter.id, { strength: Number(range.value) }));
    slide.append(range, shown);
    row.append(slide);
  }
  return row;
}
let drawn = '';
function draw() {
  const value = props.value || [];
  const state = JSON.stringify(value);
  if (state === drawn) return;
  drawn = state;
  root.replaceChildren(...value.map(one));
}
watch('value', draw);
element.addEventListener('change', () => queueMicrotask(draw));
draw();
