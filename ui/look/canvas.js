// Boxes on a canvas: draw, move and resize them with mouse, pen or finger; arrow keys move, shift and arrow keys resize.
// props.value: {boxes: [{name, box: [left, top, right, bottom] or null}], active: number, background: url or null, aspect: width / height}
const paper = element.querySelector('.paper');
const COLOURS = ['#3f5be0', '#b4501b', '#0f7a52', '#7a45b5', '#a3275f', '#0b7285'];
const LEAST = 0.04;
const clamp = (x, low, high) => Math.min(high, Math.max(low, x));
const round = (x) => Math.round(x * 1000) / 1000;
const current = () => props.value || { boxes: [], active: 0, background: null, aspect: 1 };
let drag = null;
let drawn = '';

function at(event) {
  const area = paper.getBoundingClientRect();
  return [clamp((event.clientX - area.left) / area.width, 0, 1), clamp((event.clientY - area.top) / area.height, 0, 1)];
}
function place(node, box) {
  const [left, top, right, bottom] = box;
  Object.assign(node.style, { left: `${left * 100}%`, top: `${top * 100}%`, width: `${(right - left) * 100}%`, height: `${(bottom - top) * 100}%` });
}
function put(number, box, done) {
  const value = current();
  const boxes = value.boxes.map((one, n) => (n === number ? { ...one, box: box.map(round) } : one));
  props.value = { ...value, boxes, active: number };
  draw();
  if (done) trigger('input');
}
function moved(box, dx, dy) {
  const [left, top, right, bottom] = box;
  const x = clamp(dx, -left, 1 - right), y = clamp(dy, -top, 1 - bottom);
  return [left + x, top + y, right + x, bottom + y];
}
function resized(box, dx, dy) {
  const [left, top, right, bottom] = box;
  return [left, top, clamp(right + dx, left + LEAST, 1), clamp(bottom + dy, top + LEAST, 1)];
}
function draw() {
  const value = current();
  const state = JSON.stringify(value);
  if (state === drawn) return;
  drawn = state;
  paper.style.aspectRatio = String(value.aspect || 1);
  let picture = paper.querySelector('img');
  if (value.background) {
    if (!picture) { picture = document.createElement('img'); picture.alt = ''; paper.prepend(picture); }
    if (picture.getAttribute('src') !== value.background) picture.setAttribute('src', value.background);
  } else if (picture) picture.remove();
  const nodes = [...paper.querySelectorAll('.box')];
  value.boxes.forEach((one, number) => {
    let node = nodes.find((each) => Number(each.dataset.number) === number);
    if (!one.box) { node?.remove(); return; }
    if (!node) {
      node = document.createElement('div');
      node.className = 'box';
      node.tabIndex = 0;
      node.dataset.number = number;
      node.setAttribute('role', 'group');
      node.append(document.createElement('span'), Object.assign(document.createElement('div'), { className: 'grip' }));
      paper.append(node);
    }
    const colour = COLOURS[number % COLOURS.length];
    node.style.borderColor = colour;
    node.style.background = value.plain ? 'none' : `${colour}2e`;
    node.style.boxShadow = value.plain ? '0 0 0 999px rgba(18,21,28,.45)' : '';
    node.style.zIndex = String(10 + (one.z || 0) + (number === value.active ? 50 : 0));
    node.classList.toggle('on', number === value.active);
    node.querySelector('span').textContent = one.name;
    node.querySelector('span').style.background = colour;
    node.querySelector('.grip').style.borderColor = colour;
    node.setAttribute('aria-label', `${one.name}: ${one.box.map((x) => x.toFixed(2)).join(', ')}`);
    place(node, one.box);
  });
  nodes.filter((node) => Number(node.dataset.number) >= value.boxes.length).forEach((node) => node.remove());
}
paper.addEventListener('pointerdown', (event) => {
  const value = current();
  if (!value.boxes.length) return;
  const start = at(event);
  const node = event.target.closest('.box');
  const number = node ? Number(node.dataset.number) : clamp(value.active || 0, 0, value.boxes.length - 1);
  const kind = event.target.classList.contains('grip') ? 'resize' : node ? 'move' : 'draw';
  drag = { number, kind, start, from: node ? value.boxes[number].box : [...start, ...start] };
  paper.setPointerCapture(event.pointerId);
  node?.focus();
  event.preventDefault();
});
paper.addEventListener('pointermove', (event) => {
  if (!drag) return;
  const [x, y] = at(event);
  const [x0, y0] = drag.start;
  if (drag.kind === 'draw') put(drag.number, [Math.min(x, x0), Math.min(y, y0), Math.max(x, x0), Math.max(y, y0)], false);
  else put(drag.number, (drag.kind === 'move' ? moved : resized)(drag.from, x - x0, y - y0), false);
});
const end = () => {
  if (!drag) return;
  const { number, from, kind } = drag;
  drag = null;
  const box = current().boxes[number].box;
  const tiny = !box || box[2] - box[0] < LEAST || box[3] - box[1] < LEAST;
  if (tiny && kind === 'draw') put(number, moved([from[0] - 0.2, from[1] - 0.2, from[0] + 0.2, from[1] + 0.2], 0, 0), true);
  else put(number, box, true);
};
paper.addEventListener('pointerup', end);
paper.addEventListener('pointercancel', end);
paper.addEventListener('keydown', (event) => {
  const node = event.target.closest('.box');
  const step = { ArrowLeft: [-0.02, 0], ArrowRight: [0.02, 0], ArrowUp: [0, -0.02], ArrowDown: [0, 0.02] }[event.key];
  if (!node || !step) return;
  event.preventDefault();
  const number = Number(node.dataset.number);
  put(number, (event.shiftKey ? resized : moved)(current().boxes[number].box, ...step), true);
});
paper.addEventListener('focusin', (event) => {
  const node = event.target.closest('.box');
  if (!node || drag) return;
  const value = current();
  if (value.active !== Number(node.dataset.number)) { props.value = { ...value, active: Number(node.dataset.number) }; draw(); trigger('input'); }
});
watch('value', draw);
draw();
