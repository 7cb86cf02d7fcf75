"""Tokenizers with the quirks that users report, small ones and real ones."""

import json
import pathlib
import shutil

import folders
import jax
import numpy as np
import pytest
import tokenizers
import transformers

from gft_jax import huggingface
from gft_jax.batch import Prompts
from gft_jax.config import (
  Architecture,
  Config,
  ConfigError,
  DataConfig,
  override,
)
from gft_jax.data import chat, encoding, pipeline
from gft_jax.huggingface import hub
from gft_jax.huggingface.chat_template import ChatTemplate
from gft_jax.huggingface.tokenizer import (
  end_ids,
  keep_arguments,
  load_tokenizer,
  stop_ids,
)
from gft_jax.models.transformer import Transformer
from gft_jax.policy import load_policy
from gft_jax.rollout import sampler

SMOLLM2 = pathlib.Path('~/.cache/gft_jax/SmolLM2-135M-Instruct').expanduser()
QUESTION = [{'role': 'user', 'content': 'w5'}]
TURNS = (
  "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> '"
  ' }}{% endfor %}'
)
CALL = "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"


def bos_tokenizer():
  """Puts <s> in front by itself, as Llama's tokenizer does."""
  tokenizer = folders.tiny_tokenizer()
  tokenizer.add_special_tokens({'bos_token': '<s>'})
  post = tokenizers.processors.TemplateProcessing(
    single='<s> $A', special_tokens=[('<s>', tokenizer.bos_token_id)]
  )
  tokenizer.backend_tokenizer.post_processor = post
  return tokenizer


@pytest.mark.parametrize(
  'template',
  [None, '{{ bos_token }} ' + TURNS + CALL, '{{ bos_token }}' + TURNS],
)
def test_bos_stands_once(template):
  """The tokenizer adds it, and the template writes it."""
  tokenizer = bos_tokenizer()
  tokenizer.chat_template = template
  bos = tokenizer.bos_token_id
  assert tokenizer('w5').input_ids == [bos, 7]
  ids = pipeline.encode_prompts(['w5', '<s> w5'], DataConfig(), tokenizer)
  assert [row[:1] for row in ids] == [[bos]] * 2
  assert ids[0].count(bos) == 1
  if template is None:
    assert ids == [[bos, 7]] * 2


@pytest.mark.parametrize('adds', [True, False, None])
def test_bos_that_only_the_settings_ask_for(adds, tmp_path):
  """As in DeepSeek's folders: tokenizer.json adds none by itself."""
  tokenizer = folders.tiny_tokenizer()
  tokenizer.add_special_tokens({'bos_token': '<s>'})
  tokenizer.save_pretrained(tmp_path)
  folders.change_json(tmp_path / 'tokenizer_config.json', add_bos_token=adds)
  found = load_tokenizer(tmp_path)
  ids = pipeline.encode_prompts(['w5'], DataConfig(), found)
  assert ids == [[found.bos_token_id, 7] if adds else [7]]


@pytest.mark.parametrize('pad', [None, '<eos>'])
def test_no_padding_token_or_the_eos(pad, tmp_path):
  """No id is taken for padding, in the folder, the data or the export."""
  source = tmp_path / 'source'
  folders.write_torch_model(source, 'llama')
  for name in ('config.json', 'generation_config.json'):
    settings = json.loads((source / name).read_text())
    settings.pop('pad_token_id', None)
    (source / name).write_text(json.dumps(settings))
  tokenizer = folders.tiny_tokenizer()
  tokenizer.pad_token = pad
  tokenizer.save_pretrained(source)
  model, params, tokenizer = huggingface.load(source)
  writer = chat.Writer(DataConfig(), tokenizer)
  answers = [chat.Written('w1 w2', None, ''), None]
  ids = [list(row) for row, _ in encoding.encode_answers(answers, writer)]
  assert ids == [[3, 4, 1], []]
  huggingface.save(tmp_path / 'out', model, params, tokenizer, source=source)
  generation = transformers.GenerationConfig.from_pretrained(tmp_path / 'out')
  assert generation.pad_token_id == (None if pad is None else 1)
  config = json.loads((tmp_path / 'out' / 'config.json').read_text())
  assert config['pad_token_id'] == generation.pad_token_id


@pytest.fixture(scope='module')
def folder(tmp_path_factory):
  path = tmp_path_factory.mktemp('qwen2')
  folders.write_torch_model(path, 'qwen2')
  return path


def test_a_tokenizer_file_is_taken_as_it_is(folder):
  """AutoTokenizer puts the words into Qwen2's class, where they are lost."""
  assert load_tokenizer(folder)('w3 w5').input_ids == [5, 7]


@pytest.mark.parametrize(
  'generation, config, stops',
  [
    (None, None, (1,)),
    (None, 5, (1, 5)),
    (None, [5, 1], (1, 5)),
    ([7, 1, 9], 5, (1, 7, 9)),
    (1, None, (1,)),
  ],
)
def test_every_eos_that_the_folder_names(generation, config, stops, tmp_path):
  (tmp_path / 'config.json').write_text(json.dumps({'eos_token_id': config}))
  if generation is not None:
    content = json.dumps({'eos_token_id': generation})
    (tmp_path / 'generation_config.json').write_text(content)
  assert stop_ids(tmp_path, folders.tiny_tokenizer(), 70) == stops


def test_what_ends_a_turn_stops_an_answer(tmp_path):
  """Else an own answer runs on into the next turn."""
  (tmp_path / 'config.json').write_text('{"eos_token_id": 9}')
  tokenizer = folders.tiny_tokenizer()
  assert end_ids(tokenizer) == (1,)
  tokenizer.chat_template = TURNS.replace(' <end> ', '<pad>') + CALL
  assert end_ids(tokenizer) == (1, 0)
  assert stop_ids(tmp_path, tokenizer, 70) == (1, 0, 9)
  model = Transformer(
    Architecture(vocab_size=64, width=8, layers=1, mlp_width=8)
  )
  one = np.ones((1, 1), np.int32)
  params = model.init(jax.random.key(0), one, one[0])['params']
  huggingface.save(tmp_path / 'out', model, params, tokenizer)
  generation = json.loads(
    (tmp_path / 'out' / 'generation_config.json').read_text()
  )
  assert generation['eos_token_id'] == [1, 0]
  config = override(Config(), f'model.path={tmp_path}/out')
  assert load_policy(config).eos_ids == (1, 0)
  config = override(Config(), f'model.tokenizer={tmp_path}/out')
  assert load_policy(config).eos_ids == (1, 0)


@pytest.mark.parametrize('eos', [70, -1, '1', [1, None], [[1]], 1.0, True, {}])
def test_an_eos_that_is_no_token(eos, tmp_path):
  content = json.dumps({'eos_token_id': eos})
  (tmp_path / 'generation_config.json').write_text(content)
  with pytest.raises(ConfigError, match='is not an id below vocab_size=70'):
    stop_ids(tmp_path, folders.tiny_tokenizer(), 70)


def test_every_eos_stops_the_sampler(folder, tmp_path):
  """An answer of a random model, cut at tokens that it holds."""
  copy = shutil.copytree(folder, tmp_path / 'copy')
  config = override(Config(), f'model.path={copy}')

  def answer(config):
    policy = load_policy(config)
    stops = (*policy.eos_ids, *config.sampler.stop_ids)
    prompts = Prompts(*(np.array(x, np.int32) for x in ([[3, 4]], [2], [0])))
    responses = sampler.sample_groups(
      policy.model,
      policy.params,
      prompts,
      jax.random.key(0),
      group_size=1,
      max_tokens=8,
      sampling=sampler.Sampling(temperature=9.0, stop_ids=stops),
    )
    tokens = np.asarray(responses.tokens)[0, 0, : responses.length[0, 0]]
    return stops, tokens.tolist()

  stops, tokens = answer(config)
  assert stops == (1,) and len(set(tokens)) == len(tokens) == 8
  second, third = tokens[3], tokens[5]
  (copy / 'generation_config.json').write_text(
    json.dumps({'eos_token_id': [1, second]})
  )
  stops, cut = answer(override(config, f'sampler.stop_ids={third}'))
  assert stops == (1, second, third) and cut == tokens[:4]


def test_a_tokenizer_alone_is_fetched_without_weights(monkeypatch, folder):
  wanted = []

  def folder_of(name, *, weights=True):
    wanted.append((name, weights))
    return folder

  monkeypatch.setattr(hub, 'folder_of', folder_of)
  config = override(Config(), 'model.tokenizer=owner/name')
  policy = load_policy(config)
  assert wanted == [('owner/name', False)]
  assert policy.eos_ids == (1,) and len(policy.tokenizer) == 64


def test_smollm2():
  """Real: byte-level BPE, BOS and EOS from the template, pad = EOS."""
  if not SMOLLM2.is_dir():
    pytest.skip(f'no SmolLM2 at {SMOLLM2}')
  tokenizer = load_tokenizer(SMOLLM2)
  auto = transformers.AutoTokenizer.from_pretrained(SMOLLM2)
  text = 'What is 12 + 34?\n  日本語, naïve\u00a0x'
  assert tokenizer(text).input_ids == auto(text).input_ids
  assert tokenizer.decode(tokenizer(text).input_ids) == text
  assert tokenizer.pad_token_id == tokenizer.eos_token_id
  assert stop_ids(SMOLLM2, tokenizer, 49152) == (tokenizer.eos_token_id,)
  prompt = ChatTemplate(tokenizer).prompt(QUESTION)
  assert prompt.endswith('<|im_end|>\n<|im_start|>assistant\n')


SWITCH = (
  "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> '"
  " }}{% endfor %}{% if level is defined %}{{ '<' + level + '> ' }}{% endif %}"
  '{% if add_generation_prompt %}<assistant> {% endif %}'
)


@pytest.mark.parametrize('place', ['jinja', 'config', 'named', 'processor'])
def test_arguments_of_a_run_are_defaults_of_what_it_exports(place, tmp_path):
  """Wherever the folder has its template; who asks may say otherwise."""
  folder = tmp_path / 'out'
  tokenizer = folders.tiny_tokenizer()
  tokenizer.chat_template = SWITCH
  tokenizer.save_pretrained(folder)
  file = folder / 'chat_template.jinja'
  if place != 'jinja':
    file.unlink()
    named = [{'name': 'default', 'template': SWITCH}]
    name = 'chat_template' if place == 'processor' else 'tokenizer_config'
    template = named if place == 'named' else SWITCH
    (folder / f'{name}.json').exists() or (folder / f'{name}.json').write_text(
      '{}'
    )
    folders.change_json(folder / f'{name}.json', chat_template=template)
  keep_arguments(folder, "level=it's,other=null")
  if place == 'processor':
    settings = json.loads((folder / 'chat_template.json').read_text())
    assert settings['chat_template'].endswith(SWITCH) and 'level' in str(
      settings['chat_template'].removesuffix(SWITCH)
    )
    return
  found = load_tokenizer(folder)
  prompt = '<user> w5 <end> <{}> <assistant> '
  assert ChatTemplate(found).prompt(QUESTION) == prompt.format("it's")
  told = ChatTemplate(found, 'level=high')
  assert told.prompt(QUESTION) == prompt.format('high')
  theirs = found.apply_chat_template(
    QUESTION, tokenize=False, add_generation_prompt=True
  )
  assert theirs == prompt.format("it's")


SYSTEM = "Say 'x' at the {% end %}\n\\boxed{\u00e9}"


@pytest.mark.parametrize('arguments', ['', 'level=high'])
def test_the_system_turn_of_a_run_is_a_default_too(arguments, tmp_path):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.chat_template = SWITCH
  tokenizer.save_pretrained(tmp_path)
  keep_arguments(tmp_path, arguments, SYSTEM)
  found = ChatTemplate(load_tokenizer(tmp_path))
  before = ChatTemplate(tokenizer, arguments)
  told = [{'role': 'system', 'content': SYSTEM}, *QUESTION]
  assert found.prompt(QUESTION) == found.prompt(told) == before.prompt(told)
  assert SYSTEM in found.prompt(QUESTION)
  other = [{'role': 'system', 'content': 'w3'}, *QUESTION]
  assert found.prompt(other) == before.prompt(other)
  answered = [*QUESTION, {'role': 'assistant', 'content': 'w1'}]
  assert found.render(answered) == before.render([told[0], *answered])
  found.check_system()


def test_without_arguments_the_template_stays_byte_for_byte(tmp_path):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.chat_template = SWITCH
  tokenizer.save_pretrained(tmp_path)
  before = {p.name: p.read_bytes() for p in tmp_path.iterdir()}
  keep_arguments(tmp_path, '')
  assert {p.name: p.read_bytes() for p in tmp_path.iterdir()} == before
