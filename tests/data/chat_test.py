"""An answer of several turns is the template's text, and its own words train."""

import pathlib
import types

import pytest
import transformers
from chats import ASKED, CHATML, bytes_tokenizer, encoded, write

from gft_jax.config import ConfigError, DataConfig
from gft_jax.data import benchmarks, chat, encoding, files
from gft_jax.huggingface.chat_template import ChatTemplate

SMOLLM2 = pathlib.Path('~/.cache/gft_jax/SmolLM2-135M-Instruct').expanduser()

# The same text; what the assistant writes is marked.
MARKED = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m['role'] + '\n' }}"
  "{% if m['role'] == 'assistant' %}"
  "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
  "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# It writes thoughts into the last turn only, as Qwen 3 does.
THINKING = (
  '{% for m in messages %}'
  "{{ '<|im_start|>' + m['role'] + '\n' }}"
  "{% if m['role'] == 'assistant' and loop.last %}<think></think>{% endif %}"
  "{{ m['content'] + '<|im_end|>\n' }}"
  '{% endfor %}'
  "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The same, but it says which words are the assistant's.
THINKING_MARKED = THINKING.replace(
  "{{ m['content'] + '<|im_end|>\n' }}",
  "{% if m['role'] == 'assistant' %}"
  "{% generation %}{{ m['content'] + '<|im_end|>\n' }}{% endgeneration %}"
  "{% else %}{{ m['content'] + '<|im_end|>\n' }}{% endif %}",
)
REFUSING = (
  "{% if messages[0]['role'] == 'system' %}"
  "{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
)

ANSWERED = [
  {'role': 'assistant', 'content': '2, of course'},
  {'role': 'user', 'content': 'And\n2+2?'},
  {'role': 'assistant', 'content': '4, él dijo  '},
]


def smollm2():
  if not SMOLLM2.is_dir():
    pytest.skip(f'no weights at {SMOLLM2}; experiments/fetch_smollm2.py')
  return transformers.AutoTokenizer.from_pretrained(SMOLLM2)


TOKENIZERS = {
  'SmolLM2': smollm2,
  'ChatML': lambda: bytes_tokenizer(CHATML),
  'marked': lambda: bytes_tokenizer(MARKED),
}


def plain_ids(text, tokenizer):
  return tokenizer(text, add_special_tokens=False)['input_ids']


def render(turns, tokenizer, prompt=False):
  return tokenizer.apply_chat_template(
    turns, tokenize=False, add_generation_prompt=prompt
  )


@pytest.mark.parametrize('name', TOKENIZERS)
def test_prompt_and_answer_are_the_conversation(name):
  """Up to the line end after the last turn, which nobody is asked to write."""
  tokenizer = TOKENIZERS[name]()
  prompt = plain_ids(render(ASKED, tokenizer, prompt=True), tokenizer)
  ids, trained = encoded(ASKED, ANSWERED, tokenizer)
  whole = plain_ids(render(ASKED + ANSWERED, tokenizer), tokenizer)
  assert prompt + ids == whole[:-1]
  assert tokenizer.decode(whole[-1:]) == '\n'
  assert len(ids) == len(trained) and ids[-1] == tokenizer.eos_token_id


def test_a_template_without_a_generation_prompt_calls_all_the_same():
  """The call is asked, not answered; so it does not train."""
  silent = CHATML.partition('{% if add')[0]
  tokenizer, other = bytes_tokenizer(silent), bytes_tokenizer(CHATML)
  assert ChatTemplate(tokenizer).call == '<|im_start|>assistant\n'
  written = write(ASKED, ANSWERED, tokenizer)
  assert written == write(ASKED, ANSWERED, other)


@pytest.mark.parametrize('name', TOKENIZERS)
def test_the_words_of_the_assistant_train_with_their_end(name):
  tokenizer = TOKENIZERS[name]()
  ids, trained = encoded(ASKED, ANSWERED, tokenizer)
  runs, previous = [], False
  for token, trains in zip(ids, trained):
    if trains and not previous:
      runs.append([])
    if trains:
      runs[-1].append(token)
    previous = trains
  assert [tokenizer.decode(run) for run in runs] == [
    '2, of course<|im_end|>',
    '4, él dijo  <|im_end|>',
  ]


def test_marks_of_the_template_equal_its_prefixes():
  marked, plain = (bytes_tokenizer(t) for t in (MARKED, CHATML))
  assert write(ASKED, ANSWERED, marked) == write(ASKED, ANSWERED, plain)
  assert encoded(ASKED, ANSWERED, marked) == encoded(ASKED, ANSWERED, plain)


def test_what_a_template_marks_it_may_rewrite():
  ids, trained = encoded(ASKED, ANSWERED, bytes_tokenizer(THINKING_MARKED))
  tokenizer = bytes_tokenizer(THINKING)
  text = tokenizer.decode(ids)
  assert (
    text.startswith('2, of course<|im_end|>') and '<think></think>4' in text
  )
  assert tokenizer.decode([i for i, t in zip(ids, trained) if t]) == (
    '2, of course<|im_end|>4, él dijo  <|im_end|>'
  )


@pytest.mark.parametrize('template', [CHATML, MARKED])
def test_former_turns_of_the_assistant_are_asked_not_answered(template):
  tokenizer = bytes_tokenizer(template)
  history = [*ASKED, *ANSWERED[:2]]
  written = write(history, ANSWERED[2:], tokenizer)
  assert written.text == '4, él dijo  <|im_end|>'
  ids, trained = encoded(history, ANSWERED[2:], tokenizer)
  assert tokenizer.decode(ids) == '4, él dijo  <|im_end|>'
  assert all(trained)


def test_an_answer_of_one_turn_is_its_text_with_eos():
  tokenizer = bytes_tokenizer(CHATML)
  ids, trained = encoded(ASKED, ANSWERED[:1], tokenizer)
  text = plain_ids(ANSWERED[0]['content'], tokenizer)
  assert ids == [*text, tokenizer.eos_token_id] and all(trained)


@pytest.mark.parametrize('answered', [ANSWERED[:1], ANSWERED])
def test_an_answer_ends_as_a_turn_where_that_is_not_eos(answered):
  tokenizer = bytes_tokenizer(CHATML, eos='<|endoftext|>')
  ids, trained = encoded(ASKED, answered, tokenizer)
  text = answered[-1]['content']
  assert tokenizer.decode(ids).endswith(f'{text}<|im_end|>') and trained[-1]


@pytest.mark.parametrize('answered', [ANSWERED[:1], ANSWERED])
def test_eos_ends_an_answer_where_a_turn_ends_with_text(answered):
  template = CHATML.replace('<|im_end|>', ' ###')
  tokenizer = bytes_tokenizer(template, eos='<|endoftext|>')
  ids, trained = encoded(ASKED, answered, tokenizer)
  text = answered[-1]['content']
  assert tokenizer.decode(ids).endswith(f'{text} ###<|endoftext|>')
  assert all(trained[-2:])


NUMBERED = (  # A first turn that says how many follow.
  "{{ messages | length }}{% for m in messages %}{{ '<|im_start|>' + m['role'] +"
  " '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
)


@pytest.mark.parametrize(
  'template, message',
  [
    (REFUSING, 'that the chat template refuses: System role not supported'),
    (NUMBERED, 'with turns that the chat template rewrites later'),
  ],
)
def test_a_template_that_cannot_write_them(template, message):
  tokenizer = bytes_tokenizer(
    template + '{% if add_generation_prompt %}x{% endif %}'
  )
  with pytest.raises(files.BadRow) as caught:
    write(ASKED, ANSWERED, tokenizer)
  assert str(caught.value) == message


def test_thoughts_that_the_template_writes_into_the_last_turn_alone():
  """The row is not dropped: what the template writes is taken."""
  tokenizer = bytes_tokenizer(THINKING)
  ids, trained = encoded(ASKED, ANSWERED, tokenizer)
  assert tokenizer.decode([i for i, t in zip(ids, trained) if t]) == (
    '2, of course<|im_end|><think></think>4, él dijo  <|im_end|>'
  )


def test_an_instruction_follows_the_last_turn():
  assert chat.instructed(ASKED, 'Box it.') == [
    ASKED[0],
    {'role': 'user', 'content': 'What is 1+1?\nBox it.'},
  ]
  assert chat.instructed(ASKED, '') == ASKED


# As Qwen 2.5: a system turn of its own where the conversation has none.
QWEN = (
  "{% if messages[0]['role'] != 'system' %}"
  "{{ '<|im_start|>system\nBox it.<|im_end|>\n' }}{% endif %}" + CHATML
)


def asked_by(source, prompt='2+2?', **settings):
  writer = chat.Writer(DataConfig(**settings), bytes_tokenizer(source))
  return writer.prompt(writer.asked(prompt))


def test_the_system_turn_is_the_one_that_is_set():
  """The prompt of the official evaluation, prompt_type qwen-boxed."""
  instruction = benchmarks.INSTRUCTION
  question = '<|im_start|>user\n2+2?\n' + instruction + '<|im_end|>\n'
  call = '<|im_start|>assistant\n'
  assert asked_by(
    QWEN, system='You are a helpful assistant.', instruction=instruction
  ) == (
    '<|im_start|>system\nYou are a helpful assistant.<|im_end|>\n'
    + question
    + call
  )
  # None is given: the template's own, if it has any.
  assert asked_by(QWEN, instruction=instruction) == (
    '<|im_start|>system\nBox it.<|im_end|>\n' + question + call
  )
  assert asked_by(CHATML, instruction=instruction) == question + call


@pytest.mark.parametrize(
  'prompt',
  [
    ASKED,
    [ASKED[1], {'role': 'assistant', 'content': '2'}, *ASKED],
  ],
)
def test_a_conversation_keeps_its_own_system_turn(prompt):
  own = asked_by(QWEN, prompt)
  assert asked_by(QWEN, prompt, system='Be long.') == own
  assert own.count('Be terse.') == 1
  without = [turn for turn in prompt if turn['role'] != 'system']
  told = asked_by(QWEN, without, system='Be long.')
  assert told.startswith('<|im_start|>system\nBe long.<|im_end|>\n')


def test_an_answer_follows_the_system_turn():
  asked = [{'role': 'system', 'content': 'Be terse.'}, *chat.user('1+1?')]
  tokenizer = bytes_tokenizer(QWEN)
  assert encoded('1+1?', ANSWERED, tokenizer, system='Be terse.') == encoded(
    asked, ANSWERED, tokenizer
  )


@pytest.mark.parametrize(
  ('source', 'settings', 'message'),
  [
    (None, {}, "'x' is for a chat template, but .*=auto .* has none; leave it"),
    (CHATML, {'template': 'plain'}, '=plain and the tokenizer has one; leave'),
    (REFUSING, {}, 'refuses one: System role not supported; say it in data.in'),
    (
      CHATML.replace('in messages', "in messages if m['role'] != 'system'"),
      {},
      'does not write one; say it in data.instruction',
    ),
    # A text that the template writes of itself is no sign of the turn.
    (
      CHATML.replace('in messages', "in messages if m['role'] != 'system'")
      + '{# #}x',
      {},
      'does not write one; say it in data.instruction',
    ),
  ],
)
def test_a_system_turn_that_would_be_lost_is_refused(source, settings, message):
  with pytest.raises(ConfigError, match=f'^data.system.*{message}') as caught:
    asked_by(source, system='x', **settings)
  assert '\n' not in str(caught.value)
  assert asked_by(source, **settings)  # It is the setting that is refused.


def test_special_tokens_in_a_system_turn_are_as_in_other_texts():
  told = {'system': 'x<|im_end|>'}
  with pytest.raises(files.BadRow, match=r'special token <\|im_end\|>'):
    asked_by(QWEN, **told)
  found = asked_by(QWEN, special_tokens='escape', **told)
  assert chat.ESCAPE in found
  assert chat.unescaped(found) == asked_by(QWEN, special_tokens='keep', **told)


def test_parts_change_nothing(monkeypatch):
  tokenizer = bytes_tokenizer(CHATML)
  writer = chat.Writer(DataConfig(), tokenizer)
  written = [
    write(ASKED, [{'role': 'assistant', 'content': 'ab' * i}], tokenizer)
    for i in range(1, 6)
  ]
  whole = list(encoding.encode_answers(written, writer))
  monkeypatch.setattr(encoding, 'PART', 2)
  parts = list(encoding.encode_answers(written, writer))
  assert [ids.tolist() for ids, _ in parts] == [
    ids.tolist() for ids, _ in whole
  ]
  assert [len(ids) for ids, _ in parts] == [3, 5, 7, 9, 11]


def test_a_slow_tokenizer_is_one_line():
  tokenizer = bytes_tokenizer(CHATML)
  written = write(ASKED, ANSWERED, tokenizer)

  class Slow:
    is_fast, name_or_path = False, 'slow'

  writer = types.SimpleNamespace(tokenizer=Slow())
  with pytest.raises(ConfigError, match="fast tokenizer, and 'slow' is none"):
    list(encoding.encode_answers([written], writer))
