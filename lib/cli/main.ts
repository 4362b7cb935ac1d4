#!/usr/bin/env node
/**
 * The `lapidary` command: what can be typed. Commands are loaded when they run, so that help is instant and `build` works where the
 * addon is missing.
 * @module
 */
import { Command, CommanderError, Option } from 'commander'
import { buildFromSource, packageManifest } from './build.ts'
import { describeFailure, usageStatus } from './failure.ts'
import {
  addImageOption,
  addModelOptions,
  addSamplingOptions,
  count,
  each,
  numberWithin,
  tokenCounts,
} from './options.ts'
import { endWithOutput } from './terminal.ts'

const json = 'print one JSON document'
const jsonLines = 'print JSON lines: one per token, then the whole result'

const program = new Command('lapidary')
  .description('Runs Gemma language models on this machine.')
  .version(packageManifest().version)
  .exitOverride()
  .showHelpAfterError('(--help shows what can be given)')
  .configureHelp({ helpWidth: Math.min(process.stdout.columns ?? 100, 110) })
  .addHelpText(
    'after',
    `
Examples:
  $ lapidary generate "Once upon a time"            the bundled model: small, offline, babbles like an old novel
  $ lapidary chat -m gemma-3-1b-it-q4_0.gguf        talk to a model of your own
  $ lapidary inspect gemma-3-1b-it-q4_0.gguf        what it is and how much memory it takes
  $ lapidary bench --synthetic gemma-3-1b           how fast this machine is, without any download

Models: Gemma 1, 2 and 3 (4B and larger see images), as GGUF files or Hugging Face folders. Google publishes them, after its terms are accepted:
  https://huggingface.co/google/gemma-3-1b-it-qat-q4_0-gguf      1.0 GB, a good first one
  https://huggingface.co/google/gemma-3-4b-it-qat-q4_0-gguf      3.2 GB
  https://huggingface.co/google/gemma-3-1b-it                    bf16 safetensors: \`lapidary quantize\` makes them small

Status: 0 done, 1 failed, 2 wrong use, 130 interrupted.`,
  )

const generate = program
  .command('generate')
  .summary('continue a text')
  .description('Continues a text, printing it as it comes.')
  .argument('[prompt]', 'the text; without it, --file or standard input')
  .option('-f, --file <path>', 'read the prompt from a file; - is standard input')
  .option('--json', jsonLines)
  .option('-q, --quiet', 'no line about speed at the end')
addImageOption(generate)
addModelOptions(generate)
addSamplingOptions(generate)
generate
  .addHelpText(
    'after',
    `
What is not given has the model's own default; for Gemma 3: temperature 1, top-k 64, top-p 0.95.

Examples:
  $ lapidary generate "Once upon a time"
  $ lapidary generate -m gemma-3-1b-pt-q4_0.gguf --temperature 0 -n 64 "The capital of France is"
  $ cat letter.txt | lapidary generate --seed 7 --stop "Yours"
  $ lapidary generate -m gemma-3-4b-pt-q4_0.gguf --image photo.jpg "This photo shows"
  $ lapidary generate --json "Hello" | jq -r 'select(.type == "result").text'`,
  )
  .action(async (prompt, options) => (await import('./generate.ts')).generate(prompt, options))

const chat = program
  .command('chat')
  .summary('talk to an instruction-tuned model')
  .description(
    'Talks to a model in its chat format. At a terminal: a prompt with history; elsewhere every line of standard input is a message.',
  )
  .option('--system <text>', 'a system message')
  .option('--json', jsonLines)
  .option('-q, --quiet', 'no line about speed after each answer')
addImageOption(chat)
addModelOptions(chat)
addSamplingOptions(chat)
chat
  .addHelpText(
    'after',
    `
/help in the chat lists its commands. The conversation stays in the cache: a turn costs its own tokens only.

Examples:
  $ lapidary chat -m gemma-3-4b-it-q4_0.gguf
  $ lapidary chat -m gemma-3-4b-it-q4_0.gguf --image photo.jpg    the first message is about it; /image adds more later
  $ lapidary chat -m gemma-3-4b-it-q4_0.gguf --system "Answer in French." --kv i8 --context-length 32768
  $ echo "Why is the sky blue?" | lapidary chat -m gemma-3-1b-it-q4_0.gguf --temperature 0`,
  )
  .action(async (options) => (await import('./chat.ts')).chat(options))

const serve = program
  .command('serve')
  .summary('answer OpenAI’s protocol over HTTP')
  .description(
    'Serves a model to OpenAI’s clients: chat, completions, embeddings, responses; /health, /ready and /metrics. SIGTERM and SIGINT end it: ' +
      'nothing more is accepted, and what runs may finish.',
  )
  .option('--host <address>', 'where to listen; 0.0.0.0: on all networks', '127.0.0.1')
  .option('--port <number>', 'its port; 0: any that is free', numberWithin(0, 65_535, { integer: true }), 8080)
  .option('--id <name>', 'what requests call the model (default: the name of its file)')
  .option('--embedding-model <path>', 'an EmbeddingGemma model beside it, for /v1/embeddings')
  .option('--any-model-name', 'take any name for the model; without it an unknown one is an error')
  .option(
    '--api-key <key>',
    'a key that requests must bring; repeatable; also LAPIDARY_API_KEY, with commas',
    each(String),
  )
  .option('--cors <origin>', 'let pages of this origin send requests; * for all; repeatable', each(String))
  .option('--max-sequences <count>', 'sequences that run at once (default: 8)', count)
  .option('--max-queue <count>', 'requests that may wait; one more is 429 (default: 1,024)', count)
  .option('--cache-tokens <count>', 'tokens of the KV cache (default: context length × sequences)', count)
  .option('--no-prefix-cache', 'keep nothing for later requests that begin alike')
  .option('--body-limit <bytes>', 'the most bytes of a request, with its images (default: 32 MiB)', count)
  .option('--remote-images', 'fetch images that requests name by https URL; without it they come as data URLs')
  .option(
    '--remote-image-host <host>',
    'fetch them from this host only, or with *. in front from those below it; repeatable',
    each(String),
  )
  .option('--request-timeout <seconds>', 'the longest an answer may take; 0: any (default: 600)', numberWithin(0, 1e6))
  .option('--close-deadline <seconds>', 'how long requests may finish at the end', numberWithin(0, 1e6), 30)
  .option('--metrics-prefix <text>', 'what names of metrics begin with (default: lapidary:)')
  .option('--log-prompts', 'write the bodies of requests to standard error')
  .option('-q, --quiet', 'no lines on standard error')
addModelOptions(serve)
serve
  .addHelpText(
    'after',
    `
Examples:
  $ lapidary serve -m gemma-3-4b-it-q4_0.gguf
  $ lapidary serve -m gemma-3-1b-it-q4_0.gguf --host 0.0.0.0 --api-key "$KEY" --max-sequences 16
  $ curl http://127.0.0.1:8080/v1/chat/completions -H 'content-type: application/json' \\
      -d '{"messages": [{"role": "user", "content": "Why is the sky blue?"}]}'`,
  )
  .action(async (options) => (await import('./serve.ts')).serve(options))

const syntheticTypes = ['q4_0', 'q8_0', 'bf16', 'f16']

const bench = program
  .command('bench')
  .summary('measure tokens per second beside what the machine can do')
  .description(
    'Measures prefill and decode at several context lengths. Decode reads all weights and the visible keys and values for every token: ' +
      'its speed is compared with what memory delivers. Prefill computes: it is compared with the fastest multiply-add.',
  )
  .argument('[model]', 'a .gguf file or a Hugging Face folder (default: the bundled model)')
  .option('--prefill <tokens>', 'prompt lengths, separated by commas', tokenCounts, [128, 512, 2048])
  .option('--decode <tokens>', 'contexts at which tokens are generated', tokenCounts, [512, 4096])
  .option('--repeat <count>', 'measurements of each; the median counts', count, 3)
  .option('--generate <count>', 'tokens per decode measurement', count, 32)
  .option('--synthetic <size>', 'write and measure random weights in a published shape, such as gemma-3-1b')
  .addOption(new Option('--type <type>', 'matrices of the synthetic model').choices(syntheticTypes).default('q4_0'))
  .addOption(
    new Option('--head-type <type>', 'its embedding and head (default: q8_0, or --type)').choices(syntheticTypes),
  )
  .option('--layers <count>', 'fewer layers than published, for a quick look', count)
  .option('--keep <path>', 'keep the synthetic file here; used again if it exists')
  .option('--json', json)
addModelOptions(bench, 'model')
bench
  .addHelpText(
    'after',
    `
Examples:
  $ lapidary bench gemma-3-1b-it-q4_0.gguf
  $ lapidary bench --synthetic gemma-3-4b --keep /tmp/4b.gguf --decode 512,4K,32K
  $ lapidary bench --threads 1 --json > one-thread.json`,
  )
  .action(async (model, options) => (await import('./bench.ts')).bench(model, options))

program
  .command('inspect')
  .summary('show what a checkpoint holds and what it takes to run it')
  .description('Reads headers, never weights: configuration, types, memory, tokenizer.')
  .argument('[path]', 'a .gguf or .safetensors file, an index, or a folder (default: the bundled model)')
  .option('--tensors', 'list every tensor')
  .option('--json', json)
  .addHelpText(
    'after',
    `
Examples:
  $ lapidary inspect gemma-3-27b-it-q4_0.gguf
  $ lapidary inspect --json model-folder | jq .kv`,
  )
  .action(async (path, options) => (await import('./inspect.ts')).inspect(path, options))

program
  .command('devices')
  .summary('list devices and instruction sets')
  .description('Lists the devices of this machine and the instruction sets that are compiled, supported and in use.')
  .option('--json', json)
  .action(async (options) => (await import('./devices.ts')).devices(options))

program
  .command('quantize')
  .summary('write a smaller GGUF file')
  .description(
    'Quantises a checkpoint of floats (a Hugging Face folder, safetensors or GGUF) to a GGUF file by the reference rules, as llama.cpp does.',
  )
  .argument('<input>', 'a checkpoint with f32, f16 or bf16 matrices')
  .argument('<output>', 'the .gguf file to write')
  .addOption(
    new Option('-t, --type <type>', 'matrices: q4_0 (4.5 bits per weight) or q8_0 (8.5)')
      .choices(['q4_0', 'q8_0'])
      .default('q4_0'),
  )
  .addOption(
    new Option('--head <type>', 'embedding and head: all of it is read for every token')
      .choices(['q8_0', 'q4_0', 'bf16', 'f16'])
      .default('q8_0'),
  )
  .option('--force', 'replace the output if it exists')
  .option('--json', json)
  .addHelpText(
    'after',
    `
The output appears complete or not at all.

Examples:
  $ lapidary quantize gemma-3-1b-it gemma-3-1b-it-q4_0.gguf
  $ lapidary quantize gemma-3-1b-it gemma-3-1b-it-q8_0.gguf --type q8_0`,
  )
  .action(async (input, output, options) => (await import('./quantize.ts')).quantize(input, output, options))

const perplexity = program
  .command('perplexity')
  .summary('measure how well a model predicts a text')
  .description('exp of the mean negative log-probability of each token of a text: lower is better.')
  .argument('<file>', 'a text file; - is standard input')
  .option(
    '-c, --context-length <tokens>',
    'tokens seen at once: the text is cut into such windows (default: 512)',
    count,
  )
  .option('--stride <tokens>', 'how far windows are apart; less costs more (default: --context-length)', count)
  .option('--json', json)
  .option('-q, --quiet', 'no line about speed')
addModelOptions(perplexity, 'contextLength')
perplexity
  .addHelpText(
    'after',
    `
Compare models, --kv and --head on the same text and with the same --context-length; across tokenizers the number means nothing.

Examples:
  $ lapidary perplexity -m gemma-3-1b-it-q4_0.gguf wiki.test.raw
  $ lapidary perplexity -m gemma-3-1b-it-q4_0.gguf wiki.test.raw --kv i8`,
  )
  .action(async (file, options) => (await import('./perplexity.ts')).perplexity(file, options))

program
  .command('build')
  .summary('compile the native addon')
  .description(
    'Compiles the native addon from the sources in the package, for machines without a prebuilt one. Needs a C++20 compiler and CMake.',
  )
  .option('--json', `${json}; the compiler speaks on standard error`)
  .action((options: { json?: boolean }) => {
    process.exitCode = buildFromSource(options.json === true)
  })

endWithOutput()
try {
  await program.parseAsync()
} catch (error) {
  if (error instanceof CommanderError) {
    // Help and version end with 0; whatever commander found wrong, it has said.
    process.exitCode = error.exitCode === 0 ? 0 : usageStatus
  } else {
    const { text, status } = describeFailure(error)
    process.stderr.write(text)
    process.exitCode = status
  }
}
