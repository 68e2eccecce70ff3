// The live side of a page: one stream of server-sent events, open while the page is seen.

import { root, writeTimes } from './console.mjs'

const FIRST_TRY_MS = 500
const LAST_TRY_MS = 5000
const MOST_KEPT = 64

/** How far jobs are, and their last previews, by id: what is new on the page is shown so at once. */
const known = { progress: new Map(), preview: new Map() }

/**
 * Keeps the page up to date until `close` of what it returns is called.
 *
 * `want` lists kinds: servers, queue (HTML for the element with this data-part), progress, previews (for elements with
 * the data-job of their job), ended ({id, state}), changes (the queue has changed). `job` narrows all to one job. `on`
 * has a function for each kind that the page handles itself, and `open`, called each time when the stream begins.
 * `reload`: the page may be loaded again when the gateway has been updated, since nothing is typed into it.
 */
export function openFeed({ want, job, on = {}, reload = false }) {
  const query = new URLSearchParams({ want: want.join(',') })
  if (job) query.set('job', job)
  const address = `${root}console/feed?${query}`
  let source
  let again
  let watch
  let aliveMs = 60000
  let waitMs = FIRST_TRY_MS
  let isClosed = false

  function connect() {
    clearTimeout(again)
    again = undefined
    source = new EventSource(address)
    source.addEventListener('hello', hello)
    source.addEventListener('alive', heard)
    source.addEventListener('error', lost)
    listen('progress', (data) => Object.entries(data).forEach(([id, one]) => { keep('progress', id, one); showProgress(id, one) }))
    listen('preview', (data) => { keep('preview', data.id, data); showPreview(data.id, data) })
    listen('ended', () => {})
    listen('changes', () => {})
    for (const part of document.querySelectorAll('[data-part]')) {
      source.addEventListener(part.dataset.part, (event) => { heard(); morph(part, event.data) })
    }
  }

  function listen(kind, show) {
    source.addEventListener(kind, (event) => {
      heard()
      const data = JSON.parse(event.data)
      show(data)
      on[kind]?.(data)
    })
  }

  function hello(event) {
    const { alive_s: seconds, digest } = JSON.parse(event.data)
    // Once for each: behind two gateways of different versions the page would be loaded again and again.
    if (reload && !import.meta.url.includes(`/${digest}/`) && sessionStorage.getItem('loaded') !== digest) {
      sessionStorage.setItem('loaded', digest)
      window.location.reload()
      return
    }
    aliveMs = 2.5 * seconds * 1000
    waitMs = FIRST_TRY_MS
    heard()
    setLost(false)
    on.open?.()
  }

  /** A stream that is silent for longer than the gateway ever is, is dead, whatever the browser believes. */
  function heard() {
    clearTimeout(watch)
    watch = setTimeout(lost, aliveMs)
  }

  function lost() {
    drop()
    setLost(true)
    again = setTimeout(connect, waitMs)
    waitMs = Math.min(2 * waitMs, LAST_TRY_MS)
  }

  function drop() {
    clearTimeout(watch)
    clearTimeout(again)
    source?.close()
    source = undefined
  }

  // A browser has six connections to a gateway for all its tabs: one that is not seen needs none.
  function look() {
    if (isClosed) return
    if (document.hidden) drop()
    else if (source === undefined) connect()
  }
  document.addEventListener('visibilitychange', look)
  window.addEventListener('online', look)
  window.addEventListener('pagehide', drop)
  window.addEventListener('pageshow', look)
  look()
  return {
    close() {
      isClosed = true
      drop()
      document.removeEventListener('visibilitychange', look)
      window.removeEventListener('online', look)
    },
  }
}

function setLost(isLost) {
  document.body.dataset.feed = isLost ? 'lost' : 'open'
  for (const note of document.querySelectorAll('[data-feed-lost]')) note.hidden = !isLost
}

function keep(kind, id, data) {
  const kept = known[kind]
  kept.delete(id)
  kept.set(id, data)
  if (kept.size > MOST_KEPT) kept.delete(kept.keys().next().value)
}

/**
 * Changes `part` into `html`. Elements that stay keep their focus, and fields what the visitor has typed or selected;
 * what is data-live changes by its own messages.
 */
export function morph(part, html) {
  window.Idiomorph.morph(part, html, {
    morphStyle: 'innerHTML',
    callbacks: { beforeNodeMorphed: (old, fresh) => !isLive(old, fresh) && !isVisitors(old, fresh) },
  })
  writeTimes(part)
  writeLeft(part)
  for (const element of part.querySelectorAll('[data-job]')) {
    const id = element.dataset.job
    if (known.progress.has(id)) showProgress(id, known.progress.get(id))
    if (known.preview.has(id)) showPreview(id, known.preview.get(id))
  }
}

function isLive(old, fresh) {
  return old.dataset?.live !== undefined && old.id === fresh.id
}

/** Whether a field has what the visitor has typed or selected, which the gateway does not know. */
function isVisitors(old, fresh) {
  if (old === document.activeElement && old.matches('select, textarea')) return old.id === fresh.id
  if (!(old instanceof HTMLInputElement) || old.name !== fresh.name || old.type !== fresh.type) return false
  return old.type === 'checkbox' ? old.value === fresh.value : old.value !== old.defaultValue && old.value !== fresh.value
}

function elementsOf(id) {
  return document.querySelectorAll(`[data-job="${CSS.escape(id)}"]`)
}

function showProgress(id, { overall, title, value, max }) {
  for (const element of elementsOf(id)) {
    const bar = element.querySelector('progress')
    if (bar) bar.value = overall
    write(element, '[data-percent]', `${Math.floor(overall * 100)} %`)
    write(element, '[data-node]', title)
    write(element, '[data-steps]', value === null ? '' : `${value} / ${max}`)
  }
}

function showPreview(id, { type, image }) {
  for (const element of elementsOf(id)) {
    const picture = element.querySelector('[data-preview]')
    if (!picture) continue
    picture.src = `data:${type};base64,${image}`
    picture.hidden = false
  }
}

function write(element, selector, text) {
  const place = element.querySelector(selector)
  if (place && place.textContent !== text) place.textContent = text
}

/** Writes each <time data-left> below `part` as "about 12 s left". */
function writeLeft(part = document) {
  for (const time of part.querySelectorAll('time[data-left]')) {
    const left = Math.round((new Date(time.dateTime) - Date.now()) / 1000)
    const shown = left < 90 ? `${left} s` : left < 5400 ? `${Math.round(left / 60)} min` : `${(left / 3600).toFixed(1)} h`
    const text = left < 1 ? time.dataset.over : time.dataset.left.replace('{time}', shown)
    if (time.textContent !== text) time.textContent = text
  }
}

writeLeft()
setInterval(() => writeLeft(), 1000)
