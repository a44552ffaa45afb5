/* What the openai package of npm does with a running engramd, one scenario per run:
 *   node openai_client.mjs FOLDER URL SCENARIO
 * FOLDER has node_modules/openai in it. A failed assertion ends the process with 1. Driven by run_clients.py. */
import assert from 'node:assert/strict';
import { createRequire } from 'node:module';
import path from 'node:path';

const [folder, url, scenario] = process.argv.slice(2);
const OpenAI = createRequire(path.resolve(folder, 'here.js'))('openai');

function client(options = {}) {
  return new OpenAI({ apiKey: 'none', baseURL: `${url}/v1`, maxRetries: 0, ...options });
}

const openai = client();
const STORY = { prompt: 'Once upon a time', temperature: 0, ignore_eos: true };

async function metric(name) {
  const text = await (await fetch(`${url}/metrics`)).text();
  const line = text.split('\n').find((l) => l.startsWith(`engramd_${name} `));
  assert(line, `no metric ${name}`);
  return Number(line.split(' ')[1]);
}

async function until(condition, milliseconds, what) {
  for (const end = Date.now() + milliseconds; !(await condition()); ) {
    assert(Date.now() < end, `${what} did not come true within ${milliseconds} ms`);
    await new Promise((resolve) => setTimeout(resolve, 10));
  }
}

/* The error that a promise ends with. */
async function failure(promise, type) {
  const error = await promise.then(() => null, (e) => e);
  assert(error, 'it did not fail');
  assert(error instanceof type, `${error.constructor.name}: ${error.message}`);
  return error;
}

async function collect(stream) {
  const chunks = [];
  for await (const chunk of stream) chunks.push(chunk);
  return chunks;
}

async function firstModel() {
  const page = await openai.models.list();
  return page.data[0].id;
}

async function slotIsFree() {
  await until(async () => (await metric('num_requests_running')) + (await metric('num_requests_waiting')) === 0,
    1000, 'a free slot');
}

/* A request that is aborted after `wait` ends with APIUserAbortError, and its slot is free within a second. */
async function aborted(body, wait) {
  const before = await metric('requests_cancelled_total');
  const controller = new AbortController();
  const work = (async () => {
    const answer = await openai.completions.create(body, { signal: controller.signal });
    if (body.stream) await collect(answer);
  })();
  const ended = work.then(() => null, (e) => e);
  await wait();
  controller.abort();
  await slotIsFree();
  const error = await ended;
  /* A stream that is aborted while it is read just ends. */
  assert(body.stream ? !error || error instanceof OpenAI.APIUserAbortError
                     : error instanceof OpenAI.APIUserAbortError, String(error));
  await until(async () => (await metric('requests_cancelled_total')) === before + 1, 1000, 'a counted cancellation');
}

const running = () => until(async () => (await metric('num_requests_running')) > 0, 5000, 'a running request');

const scenarios = {
  async models() {
    const page = await openai.models.list();
    assert.equal(page.object, 'list');
    assert.equal(page.data.length, 1);
    assert.equal(page.data[0].object, 'model');
    assert.deepEqual(await openai.models.retrieve(page.data[0].id), page.data[0]);
    const error = await failure(openai.models.retrieve('gpt-4'), OpenAI.NotFoundError);
    assert.equal(error.code, 'model_not_found');
  },

  async complete() {
    const model = await firstModel();
    const answer = await openai.completions.create({ model, ...STORY, max_tokens: 12, logprobs: 2 });
    assert.match(answer._request_id, /./);
    assert.match(answer.id, /^cmpl-/);
    assert.equal(answer.object, 'text_completion');
    assert.equal(answer.model, model);
    assert(Math.abs(answer.created - Date.now() / 1000) < 60);
    assert.equal(answer.choices.length, 1);
    const [choice] = answer.choices;
    assert.equal(choice.index, 0);
    assert.equal(choice.finish_reason, 'length');
    assert.equal(choice.logprobs.tokens.join(''), choice.text);
    assert.equal(choice.logprobs.token_logprobs.length, 12);
    for (const [i, top] of choice.logprobs.top_logprobs.entries()) {
      const values = Object.values(top);
      assert(values.length >= 1 && values.length <= 3);
      assert.equal(Math.max(...values), choice.logprobs.token_logprobs[i]);
    }
    assert.equal(answer.usage.completion_tokens, 12);
    assert.equal(answer.usage.total_tokens, answer.usage.prompt_tokens + 12);
    const ours = await openai.completions.create({ model, ...STORY, max_tokens: 1 },
      { headers: { 'x-request-id': 'mine-1' } });
    assert.equal(ours._request_id, 'mine-1');
    const { data, response } = await openai.completions.create({ model, ...STORY, max_tokens: 12 }).withResponse();
    assert.equal(data.choices[0].text, choice.text);
    assert(Number(response.headers.get('openai-processing-ms')) >= 0);
  },

  async stream() {
    const model = await firstModel();
    const body = { model, ...STORY, temperature: 0.8, seed: 7, max_tokens: 12, n: 3, logprobs: 2,
                   prompt: ['Once upon', 'The king'] };
    const whole = await openai.completions.create(body);
    const chunks = await collect(await openai.completions.create(
      { ...body, stream: true, stream_options: { include_usage: true } }));
    const last = chunks.pop();
    assert.deepEqual(last.choices, []);
    assert.deepEqual(last.usage, whole.usage);
    const texts = Array(6).fill(''), logprobs = Array.from({ length: 6 }, () => []), reasons = Array(6).fill(null);
    for (const chunk of chunks) {
      assert.equal(chunk.id, last.id);
      assert.equal(chunk.object, 'text_completion');
      assert.equal(chunk.choices.length, 1);
      assert(!chunk.usage);
      const [{ index, text, finish_reason, logprobs: scores }] = chunk.choices;
      assert.equal(reasons[index], null, 'a choice went on after its end');
      texts[index] += text;
      logprobs[index].push(...scores.token_logprobs);
      reasons[index] = finish_reason;
    }
    assert.deepEqual(texts, whole.choices.map((c) => c.text));
    assert.deepEqual(reasons, whole.choices.map((c) => c.finish_reason));
    assert.deepEqual(logprobs, whole.choices.map((c) => c.logprobs.token_logprobs));
    assert.equal(new Set(texts.slice(0, 3)).size, 3, 'the choices of a prompt differ');
  },

  async abort() {
    const model = await firstModel();
    const body = { model, ...STORY, max_tokens: 400 };
    const stream = await openai.completions.create({ ...body, stream: true });
    let seen = 0;
    for await (const chunk of stream) {
      assert.equal(chunk.choices.length, 1);
      if (++seen === 3) break;
    }
    await slotIsFree();
    await aborted({ ...body, stream: true }, running);
    await aborted({ ...body, stream: false }, running);
    const error = await failure(client({ timeout: 150 }).completions.create(body), OpenAI.APIConnectionTimeoutError);
    assert(error);
    await slotIsFree();
    const next = await openai.completions.create({ ...body, max_tokens: 2 });
    assert.equal(next.usage.completion_tokens, 2);
  },

  /* Rows take so long that the first token takes half a second: the step in progress ends, no other begins. */
  async abortEarly() {
    const model = await firstModel(), before = await metric('generation_tokens_total');
    for (const stream of [true, false])
      await aborted({ model, ...STORY, max_tokens: 400, stream }, running);
    const made = (await metric('generation_tokens_total')) - before;
    assert(made <= 2, `${made} tokens were made for two requests that had none when they were aborted`);
  },

  async errors() {
    const model = await firstModel();
    let error = await failure(openai.completions.create({ model, prompt: 'x', temperature: -1 }),
      OpenAI.BadRequestError);
    assert.equal(error.status, 400);
    assert.equal(error.code, 'invalid_value');
    assert.equal(error.param, 'temperature');
    assert.equal(error.type, 'invalid_request_error');
    assert.match(error.requestID, /./);
    assert.match(error.message, /temperature/);
    for (const stream of [false, true]) {
      error = await failure(openai.completions.create({ model, stream, prompt: 'x', max_tokens: 1e6 }),
        OpenAI.BadRequestError);
      assert.equal(error.code, 'context_length_exceeded');
      error = await failure(openai.completions.create({ model: 'gpt-4', stream, prompt: 'x' }), OpenAI.NotFoundError);
      assert.equal(error.status, 404);
      assert.equal(error.code, 'model_not_found');
      assert.equal(error.param, 'model');
      assert.match(error.requestID, /./);
    }
    error = await failure(openai.embeddings.create({ model, input: 'x' }), OpenAI.NotFoundError);
    assert.equal(error.code, 'unknown_url');
  },

  /* engine.max_sequences 1, max_queue 0, slow rows. */
  async full() {
    const model = await firstModel();
    const first = await openai.completions.create({ model, ...STORY, max_tokens: 60, stream: true });
    const reading = collect(first);
    await running();
    const small = { model, ...STORY, max_tokens: 1 };
    const error = await failure(openai.completions.create(small), OpenAI.RateLimitError);
    assert.equal(error.status, 429);
    assert.equal(error.type, 'rate_limit_error');
    assert.equal(error.code, 'queue_full');
    assert(Number(error.headers.get('retry-after')) >= 1);
    /* With retries the SDK waits as long as it was told, and gets its answer. */
    const begin = Date.now(), asked = [];
    const patient = client({ maxRetries: 10, fetch: (...rest) => (asked.push(Date.now()), fetch(...rest)) });
    const answer = await patient.completions.create(small);
    assert.equal(answer.usage.completion_tokens, 1);
    assert(asked.length >= 2, 'it was not refused');
    for (let i = 1; i < asked.length; i++)
      assert(asked[i] - asked[i - 1] >= 950, `asked again after ${asked[i] - asked[i - 1]} ms`);
    assert(Date.now() - begin >= 950);
    assert.equal((await reading).length, 60, 'the refusals did nothing to the running stream');
  },

  /* Every read of the disk fails. */
  async broken() {
    const model = await firstModel();
    const before = await metric('generation_tokens_total');
    for (const stream of [false, true]) {
      const work = openai.completions.create({ model, ...STORY, max_tokens: 4, stream });
      const error = await failure(stream ? work.then(collect) : work,
        stream ? OpenAI.APIError : OpenAI.InternalServerError);
      assert.equal(error.type, 'server_error');
      assert.equal(error.code, 'internal_error');
      assert.match(error.requestID ?? 'in the stream', /./);
    }
    assert.equal(await metric('generation_tokens_total'), before);
    assert.equal((await openai.models.list()).data.length, 1);
  },

  /* The disk fails after a while. */
  async breaking() {
    const model = await firstModel();
    const stream = await openai.completions.create({ model, ...STORY, max_tokens: 400, stream: true });
    let seen = 0;
    const error = await failure((async () => {
      for await (const chunk of stream) seen += chunk.choices.length;
    })(), OpenAI.APIError);
    assert(seen > 0, 'tokens came first');
    assert.equal(error.type, 'server_error');
    assert.equal(error.code, 'internal_error');
    assert.match(error.message, /N-gram/);
  },
};

assert(scenarios[scenario], `no scenario ${scenario}`);
await scenarios[scenario]();
