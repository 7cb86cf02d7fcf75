"""What a chat template asks with, how it ends a turn, and what it is told."""

import datetime

import folders
import pytest
from transformers.utils import chat_template_utils

from gft_jax.config import ConfigError
from gft_jax.huggingface.chat_template import DAY, ChatTemplate, turn_end

QUESTION = [{'role': 'user', 'content': 'w5'}]
TURNS = (
  "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] + ' <end> '"
  ' }}{% endfor %}'
)
CALL = "{% if add_generation_prompt %}{{ '<assistant> ' }}{% endif %}"
# As Llama 2: the user's turn ends in the call for an answer.
INSTRUCT = (
  "{% for m in messages %}{% if m['role'] == 'user' %}{{ '[INST] ' +"
  " m['content'] + ' [/INST]' }}{% else %}{{ ' ' + m['content'] + ' </s>' }}"
  '{% endif %}{% endfor %}'
)
RAISES = "{{ raise_exception('only one\nturn') }}"
USER_ONLY = (
  "{% for m in messages if m['role'] == 'user' %}{{ m['content'] }}{% endfor %}"
)


def with_template(template):
  tokenizer = folders.tiny_tokenizer()
  tokenizer.chat_template = template
  return tokenizer


@pytest.mark.parametrize(
  'template, prompt',
  [
    (TURNS + CALL, '<user> w5 <end> <assistant> '),
    (TURNS, '<user> w5 <end> <assistant> '),
    (INSTRUCT, '[INST] w5 [/INST]'),
    (INSTRUCT.replace("' ' +", "' Answer: ' +"), '[INST] w5 [/INST] Answer: '),
  ],
)
def test_a_prompt_ends_where_the_assistant_begins(template, prompt):
  """Also where the template does not know add_generation_prompt."""
  assert ChatTemplate(with_template(template)).prompt(QUESTION) == prompt


@pytest.mark.parametrize(
  'template, message',
  [
    (RAISES, 'fails: only one turn; use data.template=plain'),
    ('{% for %}', 'fails: '),
    ("{{ messages[0]['content']['text'] + 1 }}", 'fails: '),
    (USER_ONLY, "does not write an assistant's words after the user's"),
    ('w1 w2', "does not write an assistant's words"),
    ({'tool_use': TURNS}, 'fails: '),
  ],
)
def test_a_template_that_cannot_ask(template, message):
  with pytest.raises(ConfigError) as error:
    ChatTemplate(with_template(template)).prompt(QUESTION)
  assert message in str(error.value) and '\n' not in str(error.value)


def test_a_template_that_takes_no_answers_but_calls_for_one():
  """It is never asked to write the answer."""
  template = ChatTemplate(with_template(USER_ONLY + CALL))
  assert template.prompt(QUESTION) == 'w5<assistant> ' and not template.frame


@pytest.mark.parametrize('code', ['%d %B %Y', '%Y-%m-%d', '%-d %b, %A %H:%M'])
def test_the_day_stands_still(code, monkeypatch):
  """Tomorrow's run would refuse its own data."""

  class Clock(datetime.datetime):
    @classmethod
    def now(cls, tz=None):
      return cls(2031, 2, 3)

  monkeypatch.setattr(chat_template_utils, 'datetime', Clock)
  template = "{{ strftime_now('" + code + "') }}|" + TURNS + CALL
  found = ChatTemplate(with_template(template)).prompt(QUESTION)
  assert found.partition('|')[0] == DAY.strftime(code)


def test_a_day_under_another_name():
  """As in Llama 3.1: the date where the caller gives none."""
  template = (
    '{% if not date_string is defined %}{% set date_string ='
    " strftime_now('%d %b %Y') %}{% endif %}{{ date_string }}|"
  )
  tokenizer = with_template(template + TURNS + CALL)
  assert ChatTemplate(tokenizer).prompt(QUESTION).startswith('26 Jul 2024|')
  told = ChatTemplate(tokenizer, 'date_string=01 Jan 2026')
  assert told.prompt(QUESTION).startswith('01 Jan 2026|')


SWITCHED = (
  TURNS
  + '{% if enable_thinking is defined and enable_thinking is false %}<no> '
  + '{% endif %}'
  + CALL
)


@pytest.mark.parametrize(
  'arguments, prompt',
  [
    ('', '<user> w5 <end> <assistant> '),
    ('enable_thinking=true', '<user> w5 <end> <assistant> '),
    ('enable_thinking=false', '<user> w5 <end> <no> <assistant> '),
    ('enable_thinking=False', '<user> w5 <end> <no> <assistant> '),
  ],
)
def test_arguments_reach_the_template(arguments, prompt):
  template = ChatTemplate(with_template(SWITCHED), arguments)
  assert template.prompt(QUESTION) == prompt


@pytest.mark.parametrize(
  'arguments, message',
  [
    ('enable_thinkin=false', "'enable_thinkin'; did you mean enable_thinking?"),
    ('tokenize=true', "no argument 'tokenize'"),
    ('messages=1', "no argument 'messages'"),
  ],
)
def test_arguments_that_the_template_does_not_read(arguments, message):
  with pytest.raises(ConfigError) as error:
    ChatTemplate(with_template(SWITCHED), arguments)
  assert message in str(error.value) and 'data.template_args' in str(
    error.value
  )


@pytest.mark.parametrize(
  'end, last, token',
  [
    ("'<eos>'", '', '<eos>'),
    ("'<pad> '", '', '<pad>'),
    # As Phi 3: the end of the turn, and at the very end that of the text.
    ("'<pad> '", "{% if not add_generation_prompt %}{{ '<eos>' }}{% endif %}",
     '<pad>'),
    # As gpt-oss: the last turn ends otherwise.
    ("('<eos>' if loop.last else '<pad>')", '', '<eos>'),
    ("' <end> '", '', None),
    # As GLM 4: it ends where the next turn begins.
    ("''", '', '<user>'),
  ],
)  # fmt: skip
def test_what_ends_a_turn(end, last, token):
  template = (
    "{% for m in messages %}{{ '<' + m['role'] + '> ' + m['content'] +"
    + f' {end} }}}}{{% endfor %}}{last}'
    + CALL
  )
  tokenizer = with_template(template)
  tokenizer.add_special_tokens({'bos_token': '<user>'})
  found = turn_end(tokenizer)
  assert (found if found is None else tokenizer.decode([found])) == token


def test_what_a_user_says_is_not_lost():
  """Templates of models that see want a list of parts."""
  parts = "{% for m in messages %}{% for p in m['content'] %}{{ p['text'] }}"
  parts += '{% endfor %}{% endfor %}' + CALL
  with pytest.raises(ConfigError, match='does not write what a user says'):
    ChatTemplate(with_template(parts))


def calling(arguments):
  return (
    "{% for m in messages %}{{ '[' + m['role'] + ']' + m['content'] }}"
    "{% for c in m['tool_calls'] or [] %}{% set c = c.function or c %}"
    '{{ c.name }}:'
    + arguments
    + ';{% endfor %}{% endfor %}{% if add_generation_prompt %}[assistant]{% endif %}'
  )


@pytest.mark.parametrize('wrapped', [True, False])
@pytest.mark.parametrize(
  'arguments', ['{"a":1,"b": "é"}', {'a': 1, 'b': 'é'}, ' {"a": 1, "b": "é"}']
)
@pytest.mark.parametrize(
  'template, compact',
  [
    ('{{ c.arguments | tojson }}', False),
    (
      '{% for k, v in c.arguments | items %}{{ k }}={{ v }},{% endfor %}',
      None,
    ),
    ("{{ '' + c.arguments }}", True),
    ('{{ c.arguments }}', True),
  ],
)
def test_a_tool_is_called_with_an_object_or_with_its_json(
  template, compact, arguments, wrapped
):
  """Whichever the template reads, however the row has it."""
  call = {'name': 'add', 'arguments': arguments}
  turns = [
    {'role': 'user', 'content': '?'},
    {
      'role': 'assistant',
      'content': '',
      'tool_calls': [{'function': call} if wrapped else call],
    },
  ]
  chat = ChatTemplate(with_template(calling(template)))
  said = '{"a": 1, "b": "é"}'
  if compact is None:
    said = 'a=1,b=é,'
  elif compact and isinstance(arguments, str):
    said = arguments
  assert chat.render(turns) == f'[user]?[assistant]add:{said};'
  assert turns[1]['tool_calls'][0].get('function', call) == call


@pytest.mark.parametrize(
  'arguments, written',
  [('no json', 'no json'), ('[1]', '[1]'), ('', '{}'), ({}, '{}')],
)
def test_arguments_of_a_tool_that_are_no_object(arguments, written):
  call = {'name': 'add', 'arguments': arguments}
  turns = [
    {'role': 'user', 'content': '?'},
    {'role': 'assistant', 'content': '', 'tool_calls': [call, 'x']},
  ]
  chat = ChatTemplate(with_template(calling('{{ c.arguments }}')))
  assert chat.render(turns) == f'[user]?[assistant]add:{written};:;'


@pytest.mark.parametrize('test', ['is false', 'is not true', 'is sameas false'])
@pytest.mark.parametrize('value', ['0', 'nein', '"false"', '1'])
def test_an_argument_that_is_neither_true_nor_false(test, value):
  tokenizer = with_template(
    TURNS + CALL + '{% if x ' + test + ' %}.{% endif %}'
  )
  with pytest.raises(ConfigError, match='is neither true nor false') as error:
    ChatTemplate(tokenizer, f'x={value}')
  assert 'data.template_args' in str(error.value)
  for good in ('no', 'True', 'none'):
    ChatTemplate(tokenizer, f'x={good}')
