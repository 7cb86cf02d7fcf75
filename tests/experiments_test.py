"""The scripts as a user calls them, and the recipes."""

import dataclasses
import itertools
import json
import os
import pathlib
import pwd
import re
import shutil
import signal
import subprocess
import sys
import time

import jax
import jax.numpy as jnp
import pytest
from small_runs import with_flags

from gft_jax import batch as batch_lib
from gft_jax import recipes
from gft_jax.config import (
  Config,
  fields_with_meaning,
  for_stage,
  from_dict,
  override,
)
from gft_jax.models import presets
from gft_jax.models.transformer import Transformer
from gft_jax.recipes import embedded
from gft_jax.training import objectives, train_step
from gft_jax.training.optimizer import make_optimizer

ROOT = pathlib.Path(__file__).parents[1]
CONFIGS = sorted((ROOT / 'experiments' / 'configs').rglob('*.py'))
# Those of the paper are traced with their own model in pods_test.py.
SMALL = [
  *(name for name in recipes.NAMES if not name.startswith('paper/')),
  *(str(path) for path in CONFIGS if path.stem in ('rlhf', 'smollm2_gsm8k')),
]
# A decoder that trains in seconds.
TINY = (
  'model.architecture.width=16',
  'model.architecture.kv_heads=1',
  'model.architecture.heads=2',
  'model.architecture.head_size=8',
  'model.architecture.mlp_width=32',
  'data.rows=640',
  'stages.base.steps=2',
  'eval.prompts=4',
  'eval.ks=1',
  'eval.samples=2',
  'eval.kl_prompts=4',
  'eval.batch_size=4',
  'eval.max_response=12',
  'log.progress=false',
  'log.tensorboard=false',
)


@pytest.fixture
def scripts(monkeypatch):
  """Imports a script of experiments/ by name, as if run from there."""
  monkeypatch.syspath_prepend(str(ROOT / 'experiments'))

  def load(name):
    import importlib

    # Scripts are named like rooms of gft_jax: only here are they modules.
    monkeypatch.delitem(sys.modules, name, raising=False)
    return importlib.import_module(name)

  return load


@pytest.mark.parametrize('path', CONFIGS, ids=lambda p: p.stem)
def test_a_config_file_says_its_command(path):
  text = path.read_text().split('"""')[1]
  assert text.count('Command:') == 1
  assert 'Hardware:' in text and 'Paper item:' in text


@pytest.mark.parametrize('name', SMALL, ids=lambda p: pathlib.Path(p).stem)
def test_every_recipe_traces_its_training_steps(name):
  """Shapes only: nothing is allocated, whatever the size of the model."""
  config = recipes.load(name).config
  architecture = config.model.architecture
  if config.model.path or 'smollm2_gsm8k' in name:
    architecture = presets.SMOLLM2_135M
  if not architecture.vocab_size:
    architecture = override(architecture, 'vocab_size=23')
  model = Transformer(architecture, remat=config.model.remat)
  params = jax.eval_shape(
    model.init, jax.random.key(0), jnp.zeros((1, 1), int), jnp.ones(1, int)
  )['params']
  for stage in config.stages:
    settings = for_stage(config, stage)
    objective = objectives.choose(stage.objective, settings.group)
    step = train_step.make_train_step(
      model,
      objective,
      settings.loss,
      temperature=settings.sampler.temperature,
      mini_batches=settings.optimizer.mini_batches,
      micro_batches=settings.optimizer.micro_batches,
    )
    state = jax.eval_shape(
      lambda p, s=settings: train_step.create_state(
        model, p, make_optimizer(s.optimizer, 10)
      ),
      params,
    )
    loss = objectives.resolve(settings.loss, objective)
    reference = params if loss.kl_weight else None
    _, metrics, _ = jax.eval_shape(
      step, state, batch_shapes(settings), reference
    )
    assert metrics['loss'].total.shape == ()


def batch_shapes(settings):
  b, g = settings.data.batch_size, settings.group.size
  p, t = settings.data.max_prompt, settings.data.max_response

  def of(*shape, dtype=jnp.int32):
    return jax.ShapeDtypeStruct(shape, dtype)

  return batch_lib.GroupBatch(
    prompts=batch_lib.Prompts(of(b, p), of(b), of(b)),
    responses=batch_lib.Responses(
      of(b, g, t), of(b, g), of(b, g, t, dtype=jnp.float32)
    ),
    rewards=of(b, g, dtype=jnp.float32),
    origin=of(b, g),
    member_mask=of(b, g, dtype=bool),
  )


def test_help_lists_every_setting_with_its_meaning(scripts, capsys):
  with pytest.raises(SystemExit) as caught:
    scripts('train').main(['--help'])
  assert caught.value.code == 0
  shown = ' '.join(capsys.readouterr().out.split())
  for name, _, _, meaning in fields_with_meaning():
    assert name in shown and ' '.join(meaning.split()) in shown


QUICKSTART = str(ROOT / 'experiments/configs/quickstart.py')


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--config', 'quikstart.py'], 'quikstart.py: no such file'),
    (['--config', QUICKSTART, '--set', 'los.tau=1'], 'did you mean loss?'),
    (['--config', QUICKSTART, '--set', 'loss.tau=x'], 'not of type float'),
    (['--config', QUICKSTART, '--set', 'data.path=no.jsonl'], 'no.jsonl'),
    (['--config', QUICKSTART, '--set', 'model.path=/no'], '/no'),
    (
      ['--config', QUICKSTART, '--set', 'mesh.data=3'],
      'data.batch_size=64 is not a multiple of 3',
    ),
  ],
)
def test_a_mistake_is_one_line_and_code_2_and_writes_nothing(
  scripts, tmp_path, capsys, arguments, message
):
  workdir = tmp_path / 'run'
  code = scripts('train').main([*arguments, '--workdir', str(workdir)])
  captured = capsys.readouterr()
  lines = [l for l in captured.err.splitlines() if l.startswith('error: ')]
  assert code == 2 and len(lines) == 1 and message in lines[0]
  assert 'Traceback' not in captured.err
  assert not workdir.exists()


def test_evaluate_and_export_a_stage(scripts, whole, tmp_path, capsys):
  workdir, results = whole
  out = tmp_path / 'evaluation'
  arguments = ['--workdir', str(workdir), '--stage', 'gft', '--out', str(out)]
  assert scripts('evaluate').main(arguments) == 0
  assert 'test/avg@2' in capsys.readouterr().out
  metrics = json.loads((out / 'evaluation.json').read_text())
  assert metrics['eval/test/avg@2'] == results['gft']['eval/test/avg@2']
  assert metrics['eval/kl_to_base'] == results['gft']['eval/kl_to_base']

  folder = tmp_path / 'exported'
  arguments = ['--workdir', str(workdir), '--stage', 'gft']
  assert scripts('export').main([*arguments, '--out', str(folder)]) == 0
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
  model = transformers.AutoModelForCausalLM.from_pretrained(folder)
  encoded = tokenizer('7+8-3:', return_tensors='pt', add_special_tokens=False)
  with torch.no_grad():
    logits = model(encoded['input_ids']).logits[0, -1].log_softmax(-1)

  from gft_jax.policy import load_policy, restore_stage

  policy = load_policy(
    from_dict(Config, json.loads((workdir / 'config.json').read_text()))
  )
  params, _ = restore_stage(policy, workdir, 'gft')
  tokens = jnp.asarray(encoded['input_ids'].numpy())
  length = jnp.array([tokens.shape[1]])
  variables = {'params': params}
  prefix = policy.model.apply(variables, tokens, length, method='prefill')
  head = policy.model.apply(variables, method='head')
  ours = jax.nn.log_softmax(prefix.hidden[0] @ head)
  assert abs(logits.numpy() - ours).max() < 2e-4


@pytest.fixture
def ask(scripts, whole, tmp_path, monkeypatch):
  """evaluate.py on two files of the embedded task's alphabet."""
  from gft_jax.data import benchmarks

  for name in ('sums', 'more_sums'):
    row = benchmarks.Benchmark(6, '{q}:', '{a}', 'arithmetic', '')
    monkeypatch.setitem(benchmarks.BENCHMARKS, name, row)
    lines = [json.dumps({'q': f'{i}+3', 'a': i + 3}) for i in range(6)]
    (tmp_path / f'{name}.jsonl').write_text('\n'.join(lines))

  def call(out, *arguments):
    words = [
      *('--workdir', str(whole[0]), '--stage', 'gft', '--out', str(out)),
      *('--data', str(tmp_path), '--samples', '2', '--max-tokens', '12'),
      *('--set', 'reward.workers=0', 'eval.batch_size=4'),
    ]
    return scripts('evaluate').main(with_flags(words, arguments))

  return call


def kept_answers(out, name='sums'):
  lines = (out / 'generations' / f'{name}.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_evaluate_benchmarks(ask, scripts, tmp_path, monkeypatch, capsys):
  out = tmp_path / 'out'
  assert ask(out, '--benchmarks', 'sums,more_sums') == 0
  shown = capsys.readouterr().out
  table = (out / 'table.md').read_text()
  assert table in shown
  *lines, empty, note = table.splitlines()
  assert not empty and note.endswith('reward of 1 or more (eval.threshold).')
  head, _, *rows = [
    [cell.strip() for cell in line.split('|')[1:-1]] for line in lines
  ]
  assert head == [
    *('benchmark', 'problems', 'avg@2', '95 % interval', 'pass@2', 'maj@2')
  ]
  assert [row[0] for row in rows] == ['sums', 'more_sums', 'average']
  assert (out / 'table.tex').read_text().count(r'\\') == 4
  metrics = json.loads((out / 'evaluation.json').read_text())
  assert 0 <= metrics['eval/sums/avg@2'] <= metrics['eval/sums/pass@2'] <= 1
  assert metrics['eval/sums/problems'] == 6
  # The same questions and bits.
  assert metrics['eval/sums/avg@2'] == metrics['eval/more_sums/avg@2']

  # Every answer is kept, and the same reward grades them the same.
  lines = kept_answers(out)
  assert [line['index'] for line in lines] == sorted([*range(6)] * 2)
  mean = sum(line['reward'] for line in lines) / 12
  assert mean == pytest.approx(metrics['eval/sums/avg@2'])
  kept = out / 'generations' / 'sums.jsonl'
  regrade = ['--regrade', str(kept), '--set', 'eval.ks=1,2']
  assert scripts('evaluate').main(regrade) == 0
  assert f'{100 * mean:.2f}' in capsys.readouterr().out
  broken = tmp_path / 'broken.jsonl'
  broken.write_text('{"index": 1}')
  regrade = ['--regrade', str(broken), '--set', 'reward.function=math']
  assert scripts('evaluate').main(regrade) == 2
  assert 'line 1 is no answer' in capsys.readouterr().err
  assert ask(out, '--benchmarks', 'sums', '--data', str(out)) == 2
  assert 'sums.jsonl does not exist' in capsys.readouterr().err
  # Its own rule reads '#3', mathematics does not ask for the mark.
  (tmp_path / 'x').mkdir()
  other = tmp_path / 'x' / 'sums.jsonl'
  answered = lines[0] | {'answer': '3', 'response': '3'}
  other.write_text(json.dumps(answered))
  for assignment, value in (
    ('seed=0', '0.00'),
    ('reward.function=math', '100'),
  ):
    again = ['--regrade', str(other), '--set', 'reward.workers=0', assignment]
    assert scripts('evaluate').main(again) == 0
    assert f' {value}' in capsys.readouterr().out.splitlines()[-3]

  # Held-out splits beside them are no benchmarks, and keep them.
  held_out = ['eval.splits=test', 'eval.prompts=4', 'eval.kl_prompts=0']
  assert ask(out, *held_out) == 0
  both = json.loads((out / 'evaluation.json').read_text())
  assert metrics.items() < both.items()
  assert (out / 'table.md').read_text() == table
  metrics = both

  # What is finished is not asked again.
  from gft_jax.engine import Engine

  monkeypatch.setattr(Engine, 'sample', None)
  assert ask(out, '--benchmarks', 'sums,more_sums') == 0
  assert json.loads((out / 'evaluation.json').read_text()) == metrics
  assert (out / 'table.md').read_text() == table
  assert kept_answers(out) == lines


def test_an_evaluation_is_not_refused_for_what_it_does_not_use(
  scripts, whole, tmp_path, capsys
):
  """What a run traced and kept, its mesh, and another evaluation's time-outs."""
  run = tmp_path / 'run'
  shutil.copytree(whole[0], run)
  settings = json.loads((run / 'config.json').read_text())
  settings['log']['profile'] = 'gft:1..2'
  settings['eval']['every'] = 2
  settings['checkpoint']['best'] = 'eval/test/avg@2'
  (run / 'config.json').write_text(json.dumps(settings))
  found = []
  for out in (tmp_path / 'a', tmp_path / 'b'):
    out.mkdir()
    if out.name == 'b':
      late = {'batch': 'evaluation/test/0', 'positions': list(range(64))}
      (out / 'timeouts.jsonl').write_text(json.dumps(late))
    arguments = ['--workdir', str(run), '--stage', 'gft', '--out', str(out)]
    small = ['eval.splits=test', 'eval.prompts=16', 'eval.kl_prompts=0']
    arguments += ['--samples', '4', '--set', *small]
    assert scripts('evaluate').main(arguments) == 0, capsys.readouterr().err
    found.append((out / 'evaluation.json').read_text())
  assert found[0] == found[1]
  settings['mesh']['fsdp'] = 16
  (run / 'config.json').write_text(json.dumps(settings))
  arguments = ['--workdir', str(run), '--stage', 'gft']
  exported = tmp_path / 'exported'
  assert scripts('export').main([*arguments, '--out', str(exported)]) == 0


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['eval.temperature=0.7'], 'eval.temperature: 0.5 -> 0.7'),
    (['--samples', '1'], 'eval.samples: 2 -> 1'),
    (['--limit', '5'], "--limit: 'none' -> 5"),
    (['--stage', 'grpo'], "weights: '"),
  ],
)
def test_an_evaluation_goes_on_under_its_settings_alone(
  ask, tmp_path, capsys, arguments, message
):
  out = tmp_path / 'out'
  assert ask(out, '--benchmarks', 'sums') == 0
  before = {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}
  assert ask(out, 'seed=0', *arguments, '--benchmarks', 'sums,more_sums') == 2
  captured = capsys.readouterr().err.splitlines()[-1]
  assert message in captured and 'use a new --out' in captured
  assert before == {p: p.read_bytes() for p in out.rglob('*') if p.is_file()}


def test_questions_that_the_policy_cannot_read_are_one_line(
  ask, tmp_path, capsys
):
  out = tmp_path / 'out'
  assert ask(out, 'data.instruction=Hello', '--benchmarks', 'sums') == 2
  assert 'text that the tokenizer does not know' in capsys.readouterr().err
  assert not out.exists()


def test_the_width_of_the_prompts_is_no_part_of_the_answers(
  ask, tmp_path, monkeypatch
):
  from gft_jax.rollout import groups

  assert ask(tmp_path / 'narrow', '--benchmarks', 'sums') == 0
  monkeypatch.setattr(groups, 'NARROWEST', 512)
  assert ask(tmp_path / 'wide', '--benchmarks', 'sums') == 0
  narrow, wide = (kept_answers(tmp_path / out) for out in ('narrow', 'wide'))
  assert narrow == wide


def test_every_benchmark_that_is_there_is_asked(ask, tmp_path, capsys):
  out = tmp_path / 'out'
  assert ask(out, '--benchmarks', 'all', '--limit', '3') == 0
  asked = sorted(p.stem for p in (out / 'generations').iterdir())
  assert asked == ['more_sums', 'sums']
  assert len(kept_answers(out)) == 6
  assert ask(tmp_path / 'x', '--benchmarks', 'all', '--data', str(out)) == 2
  assert 'none of aime24' in capsys.readouterr().err


def test_compare_two_evaluations(ask, scripts, tmp_path, capsys):
  before, after = tmp_path / 'before', tmp_path / 'after'
  assert ask(before, '--benchmarks', 'sums,more_sums') == 0
  assert ask(after, '--benchmarks', 'sums') == 0
  path = after / 'generations' / 'sums.jsonl'
  lines = kept_answers(after)
  for line in lines:
    line['reward'] = 1.0 if line['index'] == 2 else 0.0
  path.write_text('\n'.join(map(json.dumps, lines)))
  capsys.readouterr()
  arguments = ['--compare', str(before), str(after)]
  out = ['--out', str(tmp_path / 'found')]
  assert scripts('evaluate').main([*arguments, *out]) == 0
  captured = capsys.readouterr()
  assert captured.err == 'more_sums is in one of the two only\n'
  found = json.loads((tmp_path / 'found' / 'comparison.json').read_text())
  assert found['sums']['after'] == pytest.approx(1 / 6)
  assert captured.out == (tmp_path / 'found' / 'comparison.md').read_text()
  # Two evaluations are compared by one threshold, and the table states it.
  numbers = json.loads((after / 'evaluation.json').read_text())
  (after / 'evaluation.json').write_text(
    json.dumps(numbers | {'eval/sums/threshold': 0.5})
  )
  assert scripts('evaluate').main(arguments) == 2
  error = capsys.readouterr().err.splitlines()[-1]
  assert 'eval.threshold=1 and 0.5; name one' in error
  chosen = ['--set', 'eval.threshold=-1']
  assert scripts('evaluate').main([*arguments, *chosen]) == 0
  shown = capsys.readouterr().out
  assert 'reward of -1 or more' in shown and ' 100.00 |' in shown
  assert scripts('evaluate').main([*arguments, '--benchmarks', 'svamp']) == 2
  assert 'svamp.jsonl does not exist' in capsys.readouterr().err
  arguments = ['--compare', str(before), str(tmp_path / 'nowhere')]
  assert scripts('evaluate').main(arguments) == 2
  assert 'no finished benchmark in' in capsys.readouterr().err


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_bit_for_bit(scripts, whole, tmp_path):
  rows = [{'input': f'{i}+{i % 7}:', 'target': i + i % 7} for i in range(562)]
  path = tmp_path / 'mawps_singleop.jsonl'
  path.write_text('\n'.join(map(json.dumps, rows)))
  arguments = [
    *('--workdir', str(whole[0]), '--stage', 'gft', '--data', str(tmp_path)),
    *('--benchmarks', 'mawps_singleop', '--limit', '120', '--samples', '2'),
    *('--max-tokens', '30', '--set', 'eval.batch_size=2', 'reward.workers=0'),
    # The embedded alphabet cannot spell the paper's instruction.
    *('reward.function=arithmetic', 'data.instruction='),
  ]

  def main(out):
    return scripts('evaluate').main([*arguments, '--out', str(out)])

  at_once, killed = tmp_path / 'at_once', tmp_path / 'killed'
  assert main(at_once) == 0
  partial = killed / 'generations' / 'mawps_singleop.partial'
  process = subprocess.Popen(
    [sys.executable, 'experiments/evaluate.py', *arguments, '--out', killed],
    cwd=ROOT,
    env=os.environ | {'PYTHONPATH': str(ROOT)},
  )
  deadline = time.monotonic() + 300
  while not partial.exists() or partial.stat().st_size < 1000:
    assert process.poll() is None and time.monotonic() < deadline
    time.sleep(0.005)
  process.kill()
  assert process.wait() == -signal.SIGKILL
  written = partial.read_bytes()
  assert 0 < written.count(b'\n') < 240
  assert not (killed / 'generations' / 'mawps_singleop.jsonl').exists()
  partial.write_bytes(written + b'{"index": 3, "pro')  # A line cut by the kill.

  from gft_jax.engine import Engine

  asked = []
  sample = Engine.sample

  def counted(*args):
    asked.append(1)
    return sample(*args)

  with pytest.MonkeyPatch.context() as patch:
    patch.setattr(Engine, 'sample', counted)
    assert main(killed) == 0
  assert len(asked) == 60 - written.count(b'\n') // 4
  for name in ('generations/mawps_singleop.jsonl', 'evaluation.json'):
    assert (at_once / name).read_bytes() == (killed / name).read_bytes(), name
  assert not partial.exists()


def test_generate_from_a_stage(scripts, whole, capsys):
  where = [
    '--workdir',
    str(whole[0]),
    '--stage',
    'gft',
    *('--prompt', '7+8:', '--prompt', '1'),  # Each adds.
  ]
  script = scripts('generate')
  outputs = []
  for settings in (['--seed', '1'], ['--seed', '1'], ['--seed', '2']):
    arguments = [*where, '--samples', '2', '--max-tokens', '9', *settings]
    assert script.main(arguments) == 0
    outputs.append(capsys.readouterr().out)
  assert outputs[0] == outputs[1] != outputs[2]
  heads = re.findall(
    r"^--- '(.*)', answer (\d): (\d+) tokens, (stopped|cut)",
    outputs[0],
    re.M,
  )
  assert [head[:2] for head in heads] == [
    *(('7+8:', '1'), ('7+8:', '2')),
    *(('1', '1'), ('1', '2')),
  ]
  assert all((head[2] == '9') or head[3] == 'stopped' for head in heads)


def test_generate_on_more_devices_than_there_are_prompts(
  scripts, whole, capsys
):
  where = ['--workdir', str(whole[0]), '--stage', 'gft', '--max-tokens', '4']
  for settings in ([], ['--set', 'mesh.fsdp=4']):
    arguments = [*where, '--prompt', '7+8:', *settings]
    assert scripts('generate').main(arguments) == 0
  alone, four = capsys.readouterr().out.split('--- ')[1:]
  assert alone.splitlines()[1:] == four.splitlines()[1:]


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--prompt', 'a'], 'give --model, or --workdir and --stage'),
    (['--model', 'nowhere', '--prompt', 'a'], 'no folder nowhere'),
    (
      ['--model', 'x', '--prompt', 'a', '--samples', '0'],
      '--samples 0 is less',
    ),
    (['RUN', '--prompt', ''], '--prompt number 1 has no token'),
    (['RUN', '--prompt', '1', '--max-tokens', '9999'], '2048 positions'),
  ],
)
def test_what_cannot_be_generated_is_said(
  scripts, whole, capsys, arguments, message
):
  run = ['--workdir', str(whole[0]), '--stage', 'gft']
  if arguments[0] == 'RUN':
    arguments = run + arguments[1:]
  assert scripts('generate').main(arguments) == 2
  assert message in capsys.readouterr().err


def test_export_of_adapters(scripts, config, tmp_path, capsys):
  """For PEFT, and merged; of a run without adapters there are none."""
  from gft_jax import huggingface
  from gft_jax.loop import train
  from gft_jax.policy import load_policy

  config = override(config, 'eval.splits=()')
  config = override(config, 'eval.base=')
  policy = load_policy(config)
  folder, workdir = tmp_path / 'model', tmp_path / 'run'
  huggingface.save(folder, policy.model, policy.params, policy.tokenizer)
  config = override(config, f'model.path={folder}')
  config = override(config, 'model.lora.rank=2')
  config = dataclasses.replace(config, stages=config.stages[:1])
  train(config, workdir)

  run = ['--workdir', str(workdir), '--stage', 'base', '--out']
  merged, adapter = tmp_path / 'merged', tmp_path / 'adapter'
  assert scripts('export').main([*run, str(merged)]) == 0
  assert scripts('export').main([*run, str(adapter), '--adapter']) == 0
  peft = pytest.importorskip('peft')
  transformers = pytest.importorskip('transformers')
  torch = pytest.importorskip('torch')
  models = (
    transformers.AutoModelForCausalLM.from_pretrained(folder),
    transformers.AutoModelForCausalLM.from_pretrained(merged),
    peft.AutoPeftModelForCausalLM.from_pretrained(adapter),
  )
  with torch.no_grad():
    before, a, b = (m(torch.arange(2, 12)[None]).logits for m in models)
  assert abs(before - a).max() > 1e-4
  assert abs(a - b).max() < 1e-5


def test_a_run_without_adapters_has_none_to_export(
  scripts, whole, tmp_path, capsys
):
  out = tmp_path / 'adapter'
  run = ['--workdir', str(whole[0]), '--stage', 'gft', '--out', str(out)]
  assert scripts('export').main([*run, '--adapter']) == 2
  assert 'model.lora.rank=0' in capsys.readouterr().err
  assert not out.exists()


@pytest.mark.parametrize(
  ('name', 'arguments', 'message'),
  [
    ('export', ['--stage', 'gtf', '--out', 'x'], 'did you mean gft?'),
    ('evaluate', ['--stage', 'gtf'], 'did you mean gft?'),
  ],
)
def test_an_unknown_stage_is_named(
  scripts, whole, capsys, name, arguments, message
):
  assert scripts(name).main(['--workdir', str(whole[0]), *arguments]) == 2
  assert message in capsys.readouterr().err


@pytest.mark.parametrize(
  ('model', 'words'),
  [
    (['--workdir', 'RUN', '--stage', 'gft'], 'stage gft kept no best step'),
    (['--model', 'folder'], 'belong to --workdir'),
  ],
)
def test_a_best_step_that_nobody_kept_is_said(
  scripts, whole, capsys, model, words
):
  model = [str(whole[0]) if word == 'RUN' else word for word in model]
  code = scripts('generate').main([*model, '--best', '--prompt', 'a'])
  error = capsys.readouterr().err
  assert code == 2 and words in error and error.count('\n') == 1


def test_not_a_run(scripts, tmp_path, capsys):
  arguments = ['--workdir', str(tmp_path), '--stage', 'a', '--out', 'x']
  assert scripts('export').main(arguments) == 2
  assert 'not a run' in capsys.readouterr().err


def test_the_readme_prints_two_commands_and_its_example_runs(capsys):
  text = (ROOT / 'README.md').read_text()
  assert len(re.findall('^python3 -m venv ', text, re.M)) == 2
  example, _ = re.findall('```python\n(.*?)```', text, re.S)
  # It leaves rank promotion at its default, as a user's session does.
  with jax.numpy_rank_promotion('allow'):
    exec(example, {})
  single, spread = capsys.readouterr().out.split()
  assert float(single) == pytest.approx(float(spread), rel=1e-5)


def train(scripts, config, workdir, *assignments):
  where = ('--config', str(config), '--workdir', str(workdir))
  return scripts('train').main([*where, '--set', *TINY, *assignments])


def records_of(workdir):
  lines = (workdir / 'metrics.jsonl').read_text().splitlines()
  return [json.loads(line) for line in lines]


def test_the_objective_of_the_readme_trains(scripts, tmp_path, monkeypatch):
  """Its lines as they are, in a config file, and the command line."""
  text = (ROOT / 'README.md').read_text()
  _, lines = re.findall('```python\n(.*?)```', text, re.S)
  code = [line for line in lines.splitlines() if line.strip()]
  assert len(code) <= 12
  monkeypatch.setattr(objectives, 'OBJECTIVES', dict(objectives.OBJECTIVES))
  path = tmp_path / 'mine.py'
  path.write_text(
    f'{lines}\nfrom gft_jax.recipes import embedded\n\n\ndef get_config():\n'
    "  return embedded.config('mine', 'focal', embedded.DEMONSTRATIONS)\n"
  )
  small = ('stages.mine.steps=2', 'log.report=false')
  code = train(scripts, path, tmp_path / 'run', *small)
  assert code == 0
  steps = [r for r in records_of(tmp_path / 'run') if r['stage'] == 'mine']
  assert len(steps) == 3 and steps[1]['train/grad_norm'] > 0


# Beside loss, gradient norm, entropy and the paper's diagnosis.
OWN_METRICS = {
  'asft': ('loss_kl',),
  'psft': ('clipped_fraction', 'behavior_kl'),
  'luffy': ('shaped_ratio', 'clipped_fraction', 'loss_entropy'),
  'grpo_sft': ('loss_sft', 'behavior_kl'),
  'chord_mu': ('mu', 'loss_sft', 'loss_policy'),
  'chord_phi': ('mu', 'loss_sft', 'loss_policy'),
  'grpo': ('clipped_fraction', 'behavior_kl'),
  'dr_grpo': ('clipped_fraction', 'behavior_kl'),
  'dapo': ('clipped_fraction', 'behavior_kl', 'refills'),
  'rloo': ('clipped_fraction', 'behavior_kl'),
}


@pytest.mark.slow
@pytest.mark.parametrize('name', embedded.ARMS)
def test_every_recipe_trains_and_shows_its_metrics(name, scripts, tmp_path):
  # No answer of an untrained model is right, so lengths are what differs.
  reward = 'reward.function=length'
  short = (reward, f'stages.{name}.steps=2', 'log.report=false')
  code = train(scripts, f'embedded/{name}', tmp_path, *short)
  assert code == 0
  steps = [
    r for r in records_of(tmp_path) if r['stage'] == name and 'train/loss' in r
  ]
  assert len(steps) == 2
  assert max(r['train/grad_norm'] for r in steps) > 0
  for metric in OWN_METRICS.get(name, ('rectified_fraction', 'entropy')):
    assert all(f'train/{metric}' in r for r in steps), metric
  if name == 'chord_mu':
    assert steps[0]['train/mu'] > steps[1]['train/mu']


TWO_FILES = """
from gft_jax import config

def get_config():
  return config.Config(stages=(config.Stage('gft', '', 'gft', 1),))
"""


def test_a_dataset_file_that_changes_between_runs_is_refused(
  scripts, tmp_path, monkeypatch, capsys
):
  from gft_jax import loop
  from gft_jax.data import arithmetic

  def interrupt(*unused):
    raise KeyboardInterrupt

  monkeypatch.setattr(loop, 'run_stage', interrupt)
  (tmp_path / 'recipe.py').write_text(TWO_FILES)
  for name in ('train', 'held_out'):
    rows = list(itertools.islice(arithmetic.rows('train'), 30))
    text = ''.join(json.dumps(row) + '\n' for row in rows)
    (tmp_path / f'{name}.jsonl').write_text(text)
  command = [
    *('--config', str(tmp_path / 'recipe.py')),
    *('--workdir', str(tmp_path / 'run'), '--set', *TINY[:5]),
    f'data.path={tmp_path}/train.jsonl',
    f'data.eval_path={tmp_path}/held_out.jsonl',
    'data.max_dropped=0.9',
    'reward.function=arithmetic',
    'eval.splits=test',
    'eval.base=',
    f'data.cache={tmp_path}/cache',
  ]
  run = scripts('train').main
  assert run(command) == run(command) == 128 + signal.SIGINT  # Not a change.

  for file in ('train', 'held_out'):
    path = tmp_path / f'{file}.jsonl'
    before = path.read_text()
    path.write_text(before.replace('"answer": "', '"answer": "1', 1))
    capsys.readouterr()
    assert run(command) == 2
    error = capsys.readouterr().err
    assert f'run was begun on other data; changed: {path}; restore' in error
    assert error.count('\n') == 1
    path.write_text(before)


# By name, and as a file.
COMPARED = [
  'embedded/gft',
  str(ROOT / 'experiments/configs/embedded/sft.py'),
]


def compare(scripts, workdir, *arguments, configs=COMPARED):
  where = ('--workdir', str(workdir), '--configs', *configs)
  return scripts('compare').main([*where, '--set', *TINY, *arguments])


@pytest.mark.slow
def test_compare_resumes_and_never_reruns_a_finished_arm(
  scripts, tmp_path, capsys
):
  only_sft = [c for c in COMPARED if c.endswith('/sft.py')]
  first = ('--steps', '2', '--seeds', '0')
  assert compare(scripts, tmp_path, *first, configs=only_sft) == 0
  finished = tmp_path / 'prompts' / 'sft' / '0' / 'metrics.jsonl'
  before = finished.stat().st_mtime_ns, finished.read_bytes()
  base = (tmp_path / 'base' / 'metrics.jsonl').read_bytes()

  # A second arm and a second seed are added; TINY has 640 rows: 160 fit.
  capsys.readouterr()
  assert compare(scripts, tmp_path, *first, '1') == 0
  assert (finished.stat().st_mtime_ns, finished.read_bytes()) == before
  assert (tmp_path / 'base' / 'metrics.jsonl').read_bytes() == base
  table = capsys.readouterr().out
  assert [
    l.split(' |')[0] for l in table.splitlines() if l.startswith('| ')
  ] == ['| arm', '| base', '| gft', '| sft']
  values = json.loads((tmp_path / 'prompts' / 'comparison.json').read_text())
  assert values['arms']['sft']['cost/steps'] == 2
  assert values['arms']['gft']['eval/test/avg@2_reach'] >= 0
  assert (tmp_path / 'prompts' / 'comparison.png').stat().st_size > 1000

  # The paper's convention: ten times the prompts of a group method.
  read = lambda arm: from_dict(  # noqa: E731
    Config,
    json.loads((tmp_path / 'prompts' / arm / '0/config.json').read_text()),
  )
  rows = {
    arm: for_stage(read(arm), read(arm).stages[0]).data.batch_size
    for arm in ('sft', 'gft')
  }
  assert rows == {'sft': 160, 'gft': 16}


@pytest.mark.slow
def test_compare_at_equal_tokens(scripts, tmp_path):
  assert (
    compare(scripts, tmp_path, '--seeds', '0', '--budget', 'tokens=3000') == 0
  )
  path = tmp_path / 'tokens=3000' / 'comparison.json'
  arms = json.loads(path.read_text())['arms']
  for arm in ('sft', 'gft'):
    tokens, steps = arms[arm]['cost/tokens'], arms[arm]['cost/steps']
    assert 3000 <= tokens < 3000 + 2 * tokens / steps


@pytest.mark.parametrize(
  ('arguments', 'message'),
  [
    (['--budget', 'token=3'], "--budget 'token=3' is not prompts, tokens=N"),
    (['--budget', 'tokens=many'], 'is not prompts'),
    (['--budget', 'tokens=0.5'], 'is not prompts'),
    (['--budget', 'seconds=0'], 'is not prompts'),
    (['--seeds', '0', '0'], '--seeds 0 0: one is there twice'),
    (['--steps', '0'], '--steps=0 must be positive'),
    (['--set', 'optimizer.mini_batches=3'], 'multiple of 3'),
    (['--configs', COMPARED[0], COMPARED[0]], "another arm is named 'gft'"),
    (
      [
        '--configs',
        COMPARED[0],
        str(ROOT / 'experiments/configs/quickstart.py'),
      ],
      'do not share a base policy: they differ in checkpoint.every, eval',
    ),
  ],
)
def test_what_cannot_be_compared_is_said(
  scripts, tmp_path, capsys, arguments, message
):
  workdir = tmp_path / 'run'
  code = scripts('compare').main(['--workdir', str(workdir), *arguments])
  assert code == 2 and message in capsys.readouterr().err
  assert not workdir.exists()


@pytest.mark.slow
def test_diagnose_the_embedded_task(scripts, tmp_path, capsys):
  run = [x for x in TINY if not x.startswith('stages.')]
  code = scripts('diagnose').main(
    ['--workdir', str(tmp_path), '--steps', '1', '--set', *run]
  )
  assert code == 0
  found = json.loads((tmp_path / 'diagnosis.json').read_text())
  assert found['demonstrations'] == 4
  quantiles = list(found['1/p'].values())
  assert quantiles == sorted(quantiles) and quantiles[0] > 1
  # A policy that knows nothing: p is near 1/22 everywhere.
  assert 5 < quantiles[0] < 100
  curve = list(found['rectified fraction'].values())
  assert curve[0] == 0 and curve[-1] == 1 and curve == sorted(curve)
  for shares in found['share of the top 1 % of tokens'].values():
    assert set(shares) == {'sft', 'dft', 'gft'}
    assert all(0 < share < 1 for share in shares.values())
  reward = found['implicit reward']
  assert reward['answers sampled'] == 8
  assert reward['log10 of its probability, median'] < -5
  stages = {'sft', 'dft', 'dft_keep_end', 'gft', 'gft_keep_end'}
  assert set(found['entropy per token']) == {'model', *stages} - {
    'model'  # Without a --model nothing is evaluated before training.
  }
  assert set(found['probability of the end']) == {'model', *stages}
  page = (tmp_path / 'diagnosis.md').read_text()
  assert page.count('\n| ') >= 12 and '## largest weights' in page
  assert (tmp_path / 'diagnosis.png').stat().st_size > 1000


@pytest.mark.parametrize('named', [False, True])
def test_compiled_programs_are_kept_where_the_user_says(tmp_path, named):
  place = tmp_path / 'mine' if named else tmp_path / '.cache/gft_jax/programs'
  environment = os.environ | {
    'HOME': str(tmp_path),
    'PYTHONPATH': str(ROOT / 'experiments'),
    'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS': '0',
  }
  environment.pop('JAX_COMPILATION_CACHE_DIR', None)
  if named:
    environment['JAX_COMPILATION_CACHE_DIR'] = str(place)
  program = """
import command

def work():
  import jax
  jax.jit(lambda x: x + 1)(1.0)

command.run(work)
"""
  subprocess.run([sys.executable, '-c', program], env=environment, check=True)
  assert list(place.glob('*-cache'))


PROGRAMS = {
  'JAX_COMPILATION_CACHE_DIR',
  'JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS',
}


@pytest.mark.parametrize('home', ['none', 'a file', 'read-only', 'filled'])
def test_a_home_that_cannot_be_written_keeps_no_programs(
  scripts, tmp_path, monkeypatch, home
):
  """What lies in a read-only home is read, and nothing is added to it."""
  command = scripts('command')
  for name in PROGRAMS:
    monkeypatch.delenv(name, raising=False)
  place = tmp_path / '.cache/gft_jax/programs'
  if home == 'filled':
    place.mkdir(parents=True)
  path = tmp_path / 'file' if home == 'a file' else tmp_path
  (tmp_path / 'file').touch()
  monkeypatch.setenv('HOME', str(path))
  if home == 'none':
    monkeypatch.delenv('HOME')
    monkeypatch.setattr(pwd, 'getpwuid', {}.__getitem__)
  # Permissions do not bind root.
  monkeypatch.setattr(os, 'access', lambda *_: False)
  before = sorted(tmp_path.rglob('*'))
  assert command.run(lambda: None) == 0
  assert sorted(tmp_path.rglob('*')) == before
  named = os.environ.pop('JAX_COMPILATION_CACHE_DIR', '')
  assert named == (str(place) if home == 'filled' else '')
  seconds = os.environ.pop('JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS', '0')
  assert float(seconds) > 0 or home == 'none'


def test_the_tree_in_the_readme_is_the_tree():
  text = (ROOT / 'README.md').read_text()
  for path in (ROOT / 'gft_jax').rglob('*.py'):
    room = path.relative_to(ROOT / 'gft_jax').parts[0]
    if not room.startswith('__'):
      assert re.search(rf'^  {re.escape(room)}[ /]', text, re.M), room


@pytest.mark.slow
def test_what_held_in_every_run_of_the_study_holds_in_the_quickstart(scripts):
  """Reads what the README's first command left; .ci/run runs it before."""
  workdir = ROOT / 'runs' / 'quickstart'
  if not (workdir / 'report' / 'index.html').exists():
    pytest.skip(f'no finished run at {workdir}')
  last = {}
  for line in (workdir / 'metrics.jsonl').read_text().splitlines():
    record = json.loads(line)
    if 'eval/kl_to_base' in record:
      last[record['stage']] = record
  claims = scripts('command').load_recipe(QUICKSTART, []).claims(last)
  assert len(claims) == 3 and all(claims.values()), claims


@pytest.mark.slow
def test_evaluate_real_weights_on_real_benchmarks(
  shared, scripts, tmp_path, capsys
):
  """SmolLM2-135M, greedy, on 40 problems each; it knows little arithmetic."""
  folder = pathlib.Path.home() / '.cache' / 'gft_jax' / 'SmolLM2-135M-Instruct'
  call('fetch_smollm2.py', str(folder))
  out = tmp_path / 'out'
  call(
    'evaluate.py',
    *('--model', str(folder), '--data', str(shared / 'data' / 'benchmarks')),
    *('--benchmarks', 'mawps_singleop,gsm8k', '--limit', '40'),
    *('--samples', '1', '--temperature', '0', '--max-tokens', '96'),
    # Asked to reason step by step, so small a model only wanders.
    *('--out', str(out), '--set', 'data.instruction='),
  )
  metrics = json.loads((out / 'evaluation.json').read_text())
  # Measured: 7.5 % and 2.5 %; 29 and 6 answers end.
  assert 0.02 <= metrics['eval/mawps_singleop/avg@1'] <= 0.3
  assert 0 <= metrics['eval/gsm8k/avg@1'] <= 0.1
  table = (out / 'table.md').read_text().splitlines()
  for name, row in zip(('mawps_singleop', 'gsm8k'), table[2:]):
    lines = kept_answers(out, name)
    assert [line['index'] for line in lines] == list(range(40))
    assert sum(line['finished'] for line in lines) >= 4
    mean = sum(line['reward'] for line in lines) / 40
    assert mean == pytest.approx(metrics[f'eval/{name}/avg@1'])
    kept = str(out / 'generations' / f'{name}.jsonl')
    assert scripts('evaluate').main(['--regrade', kept]) == 0
    again = capsys.readouterr().out.splitlines()[2]
    cells = [cell.strip() for cell in again.split('|')]
    assert cells == [cell.strip() for cell in row.split('|')]


@pytest.mark.slow
def test_gft_on_real_weights_and_real_data(tmp_path, shared_or_generated):
  """SmolLM2-135M on GSM8K: three steps, export, transformers generates."""
  folder = pathlib.Path.home() / '.cache' / 'gft_jax' / 'SmolLM2-135M-Instruct'
  workdir, exported = tmp_path / 'run', tmp_path / 'exported'
  call('fetch_smollm2.py', str(folder))
  call(
    'train.py',
    *('--config', 'experiments/configs/smollm2_gsm8k.py'),
    *('--workdir', str(workdir)),
    *('--set', f'model.path={folder}', f'data.path={shared_or_generated}'),
    'eval.max_response=12',
  )
  records = [
    json.loads(line)
    for line in (workdir / 'metrics.jsonl').read_text().splitlines()
  ]
  steps = [r for r in records if 'train/loss' in r]
  before, after = [r for r in records if 'eval/expert_logp' in r]
  assert len(steps) == 3
  for record in steps:
    assert record['train/response_length_self'] >= 1
    assert record['train/reward_expert'] > 0.9
  assert any(record['train/grad_norm'] > 0 for record in steps)
  assert after['eval/expert_logp'] > before['eval/expert_logp']

  stage = ('--workdir', str(workdir), '--stage', 'gft')
  call('export.py', *stage, '--out', str(exported))
  transformers = pytest.importorskip('transformers')
  tokenizer = transformers.AutoTokenizer.from_pretrained(exported)
  model = transformers.AutoModelForCausalLM.from_pretrained(exported)
  encoded = tokenizer('2 + 2 =', return_tensors='pt')
  written = model.generate(**encoded, max_new_tokens=8, do_sample=False)
  assert written.shape[1] > encoded['input_ids'].shape[1]


@pytest.mark.slow
def test_grpo_on_real_weights(tmp_path):
  """SmolLM2-135M on one-step problems, from prompts and answers alone."""
  folder = pathlib.Path.home() / '.cache' / 'gft_jax' / 'SmolLM2-135M-Instruct'
  path = ROOT.parent / 'shared/data/benchmarks/mawps_singleop.jsonl'
  if not path.exists():
    path = tmp_path / 'chain_sum.jsonl'
    call(
      'prepare_data.py',
      *('--reasoning-gym', 'chain_sum', '--rows', '256', '--out', str(path)),
    )
  call('fetch_smollm2.py', str(folder))
  call(
    'train.py',
    *('--config', 'experiments/configs/smollm2_gsm8k.py'),
    *('--workdir', str(tmp_path / 'run')),
    *('--set', f'model.path={folder}', f'data.path={path}'),
    *('stages.gft.objective=grpo', 'stages.gft.steps=2'),
    *('group.experts=0', 'group.samples=4', 'data.max_response=48'),
    *('sampler.temperature=0.7', 'eval.before=false', 'eval.splits=()'),
  )
  steps = [r for r in records_of(tmp_path / 'run') if 'train/loss' in r]
  assert len(steps) == 2
  assert any(r['train/grad_norm'] > 0 for r in steps)
  # One update per rollout: the policy is the one that sampled.
  assert all(abs(r['train/behavior_kl']) < 1e-4 for r in steps)
  assert all(r['train/clipped_fraction'] == 0 for r in steps)


@pytest.mark.slow
def test_diagnose_real_weights_and_real_data(tmp_path, shared_or_generated):
  folder = pathlib.Path.home() / '.cache' / 'gft_jax' / 'SmolLM2-135M-Instruct'
  call('fetch_smollm2.py', str(folder))
  call(
    'diagnose.py',
    *('--model', str(folder), '--data', str(shared_or_generated)),
    *('--workdir', str(tmp_path), '--steps', '1'),
    *('--set', 'data.rows=128', 'model.remat=full', 'loss.chunk=128'),
    *('data.batch_size=2', 'eval.prompts=8', 'eval.kl_prompts=4'),
    *('eval.ks=1', 'eval.samples=1', 'eval.max_response=12'),
  )
  found = json.loads((tmp_path / 'diagnosis.json').read_text())
  assert found['1/p']['largest'] > 100 > found['1/p']['50.0%'] >= 1
  weight = found['share of the top 1 % of tokens']['in the weight on grad p']
  assert weight['sft'] > 0.5 > weight['gft']
  assert set(found['entropy per token']) == {
    *('model', 'sft', 'dft', 'dft_keep_end', 'gft', 'gft_keep_end')
  }


@pytest.fixture
def shared_or_generated(tmp_path):
  """GSM8K where it lies beside the checkout, else Reasoning Gym's likeness."""
  path = ROOT.parent / 'shared' / 'data' / 'gsm8k' / 'train.parquet'
  if path.exists():
    return path
  out = tmp_path / 'gsm_symbolic.jsonl'
  call(
    'prepare_data.py',
    *('--reasoning-gym', 'gsm_symbolic', '--rows', '512', '--out', str(out)),
  )
  return out


def call(script, *arguments):
  environment = {k: v for k, v in os.environ.items() if k != 'XLA_FLAGS'}
  subprocess.run(
    [sys.executable, f'experiments/{script}', *arguments],
    cwd=ROOT,
    env=environment,
    check=True,
  )
