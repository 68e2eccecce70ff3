// The form of a named workflow: sliders, dice, files by drop and paste, the run beside it, and its call as code.
// Numbers are texts here all the way: a JavaScript number changes whole numbers beyond 2^53.
import { oneAtATime, pageAt, root, send, tell, writeTimes } from './console.mjs'
import { morph, openFeed } from './feed.mjs'

const form = document.querySelector('#run')
const panel = document.querySelector('#panel')
const problem = document.querySelector('#problem')
const code = document.querySelector('#code')

for (const part of document.querySelectorAll('[data-slider], [data-dice], [data-each], [data-needs-script]')) part.hidden = false
form.noValidate = true

// Numbers

const field = (part) => part.closest('.field')
const box = (part) => field(part).querySelector('[name]:not([type=hidden])')

for (const slider of form.querySelectorAll('[data-slider]')) {
  const number = box(slider)
  slider.addEventListener('input', () => {
    number.value = slider.value
    changed()
  })
  number.addEventListener('input', () => {
    if (number.value.trim() !== '' && Number.isFinite(Number(number.value))) slider.value = number.value
  })
}

/** A whole number from 0 to 2^53-1, which every program that reads JSON reads exactly. */
function anySeed() {
  const [high, low] = crypto.getRandomValues(new Uint32Array(2))
  return ((BigInt(high & 0x1fffff) << 32n) | BigInt(low)).toString()
}

for (const dice of form.querySelectorAll('[data-dice]')) {
  const seed = box(dice)
  const each = field(dice).querySelector('[data-each-run]')
  const show = () => {
    each.checked = seed.value.trim() === seed.dataset.random
  }
  dice.addEventListener('click', () => {
    seed.value = within(anySeed(), seed)
    show()
    changed()
  })
  each.addEventListener('change', () => {
    seed.value = each.checked ? seed.dataset.random : within(anySeed(), seed)
    changed()
  })
  seed.addEventListener('input', show)
  show()
}

/** The number as one that the seed's limits allow. */
function within(text, seed) {
  const low = BigInt(seed.dataset.low)
  return (low + (BigInt(text) % (BigInt(seed.dataset.high) - low + 1n))).toString()
}

// Files

const size = (bytes) => {
  const [value, unit] = bytes < 1e6 ? [bytes / 1e3, 'kilobyte'] : [bytes / 1e6, 'megabyte']
  return new Intl.NumberFormat(document.documentElement.lang, { style: 'unit', unit, maximumFractionDigits: 1 }).format(value)
}

const kinds = { image: 'img', video: 'video', audio: 'audio' }

/** Shows what a file field has: its name, its size, and the file itself where browsers can. */
function showFile(input) {
  const part = field(input)
  const [file] = input.files
  const preview = part.querySelector('[data-preview]')
  for (const old of preview.children) URL.revokeObjectURL(old.src)
  preview.replaceChildren()
  part.querySelector('[data-remove]').hidden = !file
  const chosen = part.querySelector('[data-chosen]')
  chosen.replaceChildren()
  const kept = part.querySelector('[data-kept]')
  if (kept) kept.hidden = Boolean(file)
  if (!file) return
  const badge = document.createElement('span')
  badge.className = 'badge good'
  badge.textContent = form.dataset.chosenIs
  chosen.replaceChildren(badge, ` ${file.name} (${size(file.size)})`)
  const tag = kinds[file.type.split('/')[0]]
  if (!tag) return
  const shown = document.createElement(tag)
  shown.src = URL.createObjectURL(file)
  if (tag === 'img') shown.alt = file.name
  else {
    shown.controls = true
    shown.setAttribute('aria-label', file.name)
  }
  preview.append(shown)
}

/** Puts a file that was dropped or pasted into a field, as if it had been chosen there. */
function put(input, file) {
  const held = new DataTransfer()
  held.items.add(file)
  input.files = held.files
  input.dispatchEvent(new Event('change', { bubbles: true }))
}

const files = [...form.querySelectorAll('input[type=file]')]
for (const input of files) {
  const drop = input.closest('[data-drop]')
  let inside = 0
  const over = (by) => {
    inside = by === 0 ? 0 : inside + by
    drop.classList.toggle('over', inside > 0)
  }
  drop.addEventListener('dragenter', (event) => {
    event.preventDefault()
    over(1)
  })
  drop.addEventListener('dragover', (event) => event.preventDefault())
  drop.addEventListener('dragleave', () => over(-1))
  drop.addEventListener('drop', (event) => {
    event.preventDefault()
    over(0)
    if (event.dataTransfer.files.length) put(input, event.dataTransfer.files[0])
  })
  drop.querySelector('[data-remove]').addEventListener('click', () => {
    input.value = ''
    input.dispatchEvent(new Event('change', { bubbles: true }))
    input.focus()
  })
  input.addEventListener('change', () => showFile(input))
  if (input.files.length) showFile(input) // a browser that comes back to the page may remember them
}

const takes = (input, file) => {
  const kind = input.accept.endsWith('/*') ? input.accept.slice(0, -1) : ''
  return file.type.startsWith(kind)
}

document.addEventListener('paste', (event) => {
  const pasted = event.clipboardData?.files[0]
  if (!pasted || !files.length) return
  const here = event.target instanceof Element ? field(event.target)?.querySelector('input[type=file]') : null
  const fitting = files.filter((input) => takes(input, pasted))
  const input = here || fitting.find((one) => !one.files.length) || fitting[0] || files[0]
  event.preventDefault()
  put(input, pasted)
})

// What is wrong, at its field

function clearErrors() {
  problem.hidden = true
  for (const why of form.querySelectorAll('.why')) why.hidden = true
  for (const part of form.querySelectorAll('[aria-invalid=true]')) part.setAttribute('aria-invalid', 'false')
}

function showErrors(error) {
  const parameters = { ...error.answer?.parameters }
  let first = null
  for (const part of form.querySelectorAll('.field')) {
    const found = parameters[part.dataset.field]
    if (!found) continue
    delete parameters[part.dataset.field]
    const why = part.querySelector('.why')
    why.textContent = found.message
    why.hidden = false
    const control = part.querySelector('[aria-invalid]')
    control.setAttribute('aria-invalid', 'true')
    const folded = part.closest('details')
    if (folded) folded.open = true
    first ??= control
  }
  problem.textContent = first && !Object.keys(parameters).length ? form.dataset.wrong : error.message
  problem.hidden = false
  if (first) first.focus()
  else problem.scrollIntoView({ block: 'nearest' })
}

if (form.dataset.first) document.getElementById(form.dataset.first)?.focus()

// The run beside the form

// After an answer that did not come.
const AGAIN_MS = 2000
let feed = null
let current = null

form.addEventListener('submit', async (event) => {
  event.preventDefault()
  const button = event.submitter
  if (button?.getAttribute('aria-busy')) return
  button?.setAttribute('aria-busy', 'true')
  clearErrors()
  try {
    const done = await send(form, button)
    const id = done.to.split('/').pop()
    const address = new URL(window.location)
    address.searchParams.set('job', id)
    history.replaceState(null, '', address)
    await follow(id)
  } catch (error) {
    showErrors(error)
  } finally {
    button?.removeAttribute('aria-busy')
  }
})

form.addEventListener('keydown', (event) => {
  if (event.key !== 'Enter' || !(event.ctrlKey || event.metaKey)) return
  event.preventDefault()
  form.requestSubmit(form.querySelector('button.first'))
})

/** Shows a run until it has ended; the feed says when there is something new. */
async function follow(id) {
  feed?.close()
  feed = null
  const followed = { isEnded: false }
  current = followed

  const look = oneAtATime(async () => {
    if (followed !== current || followed.isEnded) return
    const answer = await fetch(form.dataset.jobs + id).catch(() => null)
    const html = answer?.ok ? await answer.text() : null
    if (followed !== current) return
    if (html === null) {
      setTimeout(look, AGAIN_MS)
      return
    }
    morph(panel, html)
    if (panel.querySelector('[data-ended]')) {
      followed.isEnded = true
      feed?.close()
      await ended()
    }
  })

  const waits = () => panel.querySelector('[data-state=queued]') !== null
  await look()
  if (followed !== current || followed.isEnded) return
  feed = openFeed({
    want: ['progress', 'previews', 'ended', 'changes'],
    job: id,
    on: { open: look, ended: look, changes: () => waits() && look(), progress: () => waits() && look() },
  })
}

/** A run has ended: it is among the recent ones. */
async function ended() {
  const other = await pageAt(form.action).catch(() => null)
  if (other === null) return
  document.querySelector('[data-recent]').replaceWith(other.querySelector('[data-recent]'))
  writeTimes()
}

const running = panel.querySelector('[data-job]:not([data-ended])')
if (running) follow(running.dataset.job)

// The call as code

let written = 0

function changed() {
  clearTimeout(written)
  if (code.open) written = setTimeout(writeCode, 300)
}

async function writeCode() {
  const data = new URLSearchParams()
  for (const [name, value] of new FormData(form)) {
    if (typeof value === 'string') data.append(name, value)
    else if (value.name) data.append(name, value.name)
  }
  data.append('$base', new URL(root, document.baseURI).href.replace(/\/$/, ''))
  const headers = { Accept: 'application/json' } // so that a refusal is told, and no page
  const answer = await fetch(form.dataset.code, { method: 'POST', headers, body: data }).catch(() => null)
  if (answer === null) return
  const parts = code.querySelector('[data-parts]')
  if (!answer.ok) {
    parts.textContent = (await answer.json().catch(() => null))?.message ?? ''
    return
  }
  parts.innerHTML = await answer.text()
  showCopies()
}

function showCopies() {
  for (const copy of code.querySelectorAll('[data-copy]')) copy.hidden = false
}

code.addEventListener('toggle', () => code.open && writeCode())
code.addEventListener('click', async (event) => {
  const copy = event.target.closest('[data-copy]')
  if (!copy) return
  const text = copy.closest('.code').querySelector('code')
  try {
    await navigator.clipboard.writeText(text.textContent)
  } catch {
    // Browsers have no clipboard for pages without TLS on another machine.
    window.getSelection().selectAllChildren(text)
    document.execCommand('copy')
  }
  tell(form.dataset.copied)
})
form.addEventListener('input', changed)
form.addEventListener('change', changed)
showCopies()
