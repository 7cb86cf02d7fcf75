"""A run with the template of a thinking model, from its rows to its export."""

import dataclasses
import json

import pytest
from chats import bytes_tokenizer

from gft_jax.config import Stage, override
from gft_jax.data import pipeline
from gft_jax.generate import answer_prompts
from gft_jax.huggingface import load_tokenizer
from gft_jax.loop import train
from gft_jax.policy import export_stage, load_policy, load_stage
from gft_jax.report.run import read_run

TEMPLATE = (
  "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content']"
  "  + '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}"
  "{{ '<|im_start|>assistant\n<think>\n' }}{% if enable_thinking is defined and"
  " not enable_thinking %}{{ '\n</think>\n\n' }}{% endif %}{% endif %}"
)


@pytest.mark.slow
@pytest.mark.parametrize('thinks', [True, False])
def test_a_run_asks_alike_from_its_rows_to_its_export(config, tmp_path, thinks):
  tokenizer = bytes_tokenizer(TEMPLATE, eos='<|endoftext|>')
  tokenizer.save_pretrained(tmp_path / 'tokenizer')
  rows = [
    {'prompt': f'{i}?', 'answer': f'{i}', 'expert': f'{i}<|im_end|>'}
    for i in range(20)
  ]
  path = tmp_path / 'rows.jsonl'
  path.write_text(''.join(json.dumps(row) + '\n' for row in rows))
  for setting in (
    *(f'data.path={path}', f'data.eval_path={path}', 'data.rows=0'),
    *(f'data.cache={tmp_path}/cache', f'model.tokenizer={tmp_path}/tokenizer'),
    *('data.max_prompt=80', 'group.teachers=0', 'eval.base='),
    *('log.report=false', 'eval.kl_prompts=0'),
    r'reward.function=format',
    r'reward.pattern=\A<think>',
    *([] if thinks else ['data.template_args=enable_thinking=false']),
    *([] if thinks else ['data.system=Be terse.']),
  ):
    config = override(config, setting)
  config = override(config, 'model.architecture.max_positions=256')
  config = dataclasses.replace(config, stages=(Stage('gft', '', 'gft', 2),))
  run = tmp_path / 'run'
  train(config, run)
  kept = json.loads((run / 'config.json').read_text())['data']['template_args']
  assert kept == ('' if thinks else 'enable_thinking=false')
  last = read_run(run).final('gft')
  assert last['eval/test/avg@2'] == float(thinks)

  stage = load_stage(run, 'gft')
  end = '<think>\n' if thinks else '<think>\n\n</think>\n\n'
  (ids,) = pipeline.encode_prompts(
    ['7?'], stage.config.data, stage.policy.tokenizer
  )
  system = '' if thinks else '<|im_start|>system\nBe terse.<|im_end|>\n'
  assert tokenizer.decode(ids) == (
    f'{system}<|im_start|>user\n7?<|im_end|>\n<|im_start|>assistant\n{end}'
  )
  texts, _, _ = answer_prompts(
    stage.config, stage.policy, stage.params, ['7?'], 2, 6
  )
  assert all(text.startswith('<think>\n') == thinks for text in texts[0])

  out = tmp_path / 'out'
  export_stage(run, 'gft', out)
  told = override(config, 'data.template_args=')
  told = override(told, 'data.system=')
  told = override(told, f'model.path={out}')
  assert pipeline.encode_prompts(['7?'], told.data, load_tokenizer(out)) == [
    ids
  ]
  assert set(load_policy(told).eos_ids) == set(stage.policy.eos_ids)
  generation = json.loads((out / 'generation_config.json').read_text())
  assert generation['eos_token_id'] == list(stage.policy.eos_ids)
  assert len(stage.policy.eos_ids) == 2
