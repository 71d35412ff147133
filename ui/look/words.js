// The prompt's words as buttons: a click gives the word to the chosen adapter, or takes it away again.
// props.value: {words: [[text, start], …], owners: {word number: adapter number}, active: adapter number}
const root = element.querySelector('.words');
const COLOURS = ['#3f5be0', '#b4501b', '#0f7a52', '#7a45b5', '#a3275f', '#0b7285'];
let drawn = '';
function draw() {
  const value = props.value || { words: [], owners: {}, active: 0 };
  const state = JSON.stringify(value);
  if (state === drawn) return;
  drawn = state;
  root.replaceChildren(...value.words.map(([text], number) => {
    const button = document.createElement('button');
    const owner = value.owners[number];
    button.type = 'button';
    button.className = 'word';
    button.textContent = text;
    button.setAttribute('aria-pressed', owner !== undefined ? 'true' : 'false');
    if (owner !== undefined) { button.style.background = COLOURS[owner % COLOURS.length]; button.title = (value.names || [])[owner] || ''; }
    button.addEventListener('click', () => {
      const owners = { ...value.owners };
      if (owners[number] === value.active) delete owners[number]; else owners[number] = value.active;
      props.value = { ...value, owners };
      draw();
      root.children[number]?.focus();
      trigger('input');
    });
    return button;
  }));
}
watch('value', draw);
draw();
