from recorded_runs import full_run

from gft_jax.report import tables


def test_the_table_in_the_terminal(tmp_path):
  lines = tables.table(full_run(tmp_path / 'run')).split('\n')
  assert [line.split() for line in lines] == [
    ['stage', 'test/avg@4', 'kl_to_base', 'entropy'],
    ['warm', '0.432', '(0.401–0.464)', '0.062', '0.144'],
    ['group', '0.765', '(0.734–0.798)', '0.109', '0.255'],
  ]
  assert tables.table({'a': {'eval/s/avg@4': 0.5}, 'b': {}}).split('\n') == [
    'stage  s/avg@4',
    'a      0.500',
    'b      –',
  ]


def measured(name, value, **more):
  metrics = {
    'problems': 40,
    'avg@16': value,
    'avg@16_low': value - 0.1,
    'avg@16_high': value + 0.1,
    'pass@1': value,
    'pass@8': value + 0.2,
    'pass@16': value + 0.3,
    'maj@1': value,
    'maj@16': value + 0.05,
    'not_asked': 0,
  }
  return {f'eval/{name}/{k}': v for k, v in (metrics | more).items()}


def test_the_table_of_benchmarks():
  table = tables.benchmark_table(
    measured('amc23', 0.3016) | measured('math_oai', 0.4654, problems=500)
  )
  assert tables.markdown(table) == (
    '| benchmark | problems | avg@16 | 95 % interval | pass@16 | maj@16 |\n'
    '| --------- | -------: | -----: | ------------: | ------: | -----: |\n'
    '| amc23     |       40 |  30.16 |   20.16–40.16 |   60.16 |  35.16 |\n'
    '| math_oai  |      500 |  46.54 |   36.54–56.54 |   76.54 |  51.54 |\n'
    '| average   |          |  38.35 |               |   68.35 |  43.35 |\n'
  )
  assert tables.latex(table).splitlines() == [
    r'\begin{tabular}{lrrrrr}',
    r'\toprule',
    r'benchmark & problems & avg@16 & 95 \% interval & pass@16 & maj@16 \\',
    r'\midrule',
    r'amc23 & 40 & 30.16 & 20.16--40.16 & 60.16 & 35.16 \\',
    r'math\_oai & 500 & 46.54 & 36.54--56.54 & 76.54 & 51.54 \\',
    r'\midrule',
    r'average &  & 38.35 &  & 68.35 & 43.35 \\',
    r'\bottomrule',
    r'\end{tabular}',
  ]


def test_a_mean_reward_that_is_not_the_accuracy_has_a_column():
  partial = {'mean_reward': 0.5, 'threshold': 0.8}
  binary = {'mean_reward': 0.25, 'threshold': 1.0}
  note = 'Accuracy (avg@n) is the share of answers with a reward of 0.8 or'
  metrics = measured('gsm8k', 0.25, **partial)
  table = tables.benchmark_table(metrics | measured('amc23', 0.25, **binary))
  assert [row[-1] for row in (table.head, *table.body, table.foot)] == [
    *('mean reward', '0.500', '0.250', '0.375')
  ]
  assert table.note.startswith('Accuracy') and '0.8 or 1 or more' in table.note
  assert tables.markdown(table).endswith(f'\n\n{table.note}\n')
  assert tables.latex(table).startswith(f'% {table.note}\n')
  assert (
    'mean reward'
    not in tables.benchmark_table(measured('amc23', 0.25, **binary)).head
  )
  lines = tables.table({'a': metrics}).split('\n')
  assert lines[0].split()[1:] == ['gsm8k/avg@16', 'gsm8k/mean_reward']
  assert lines[-1].startswith(note)


def test_one_sample_has_no_column_for_pass_and_vote():
  names = ('avg@1', 'avg@1_low', 'avg@1_high', 'pass@1', 'maj@1')
  metrics = {f'eval/svamp/{name}': 0.5 for name in names}
  table = tables.benchmark_table(metrics)
  assert table.head == ['benchmark', 'problems', 'avg@1', '95 % interval']
  assert table.body == [['svamp', '–', '50.00', '50.00–50.00']]


def test_the_table_of_a_comparison():
  row = {
    'problems': 1000,
    'before': 0.8636,
    'after': 0.7873,
    'difference': -0.0763,
    'difference_low': -0.09,
    'difference_high': 0.01,
    'gained': 31,
    'lost': 107,
  }
  table = tables.comparison_table(
    {'svamp': row, 'mawps': row | {'before': 0.9, 'after': 0.9999}}
  )
  assert table.body[0] == [
    *('svamp', '1000', '86.36', '78.73', '−7.63', '−9.00 to +1.00'),
    *('31', '107'),
  ]
  assert table.foot[:5] == ['average', '', '88.18', '89.36', '−7.63']
  assert '$-$7.63 & $-$9.00 to +1.00 & 31' in tables.latex(table)


def test_a_comparison_with_partial_credit_shows_mean_rewards():
  row = {
    'problems': 4,
    'before': 0.5,
    'after': 0.25,
    'difference': -0.25,
    'difference_low': -0.5,
    'difference_high': 0.0,
    'gained': 0,
    'lost': 1,
    'mean_reward_before': 0.5,
    'mean_reward_after': 0.75,
    'threshold': 1.0,
  }
  table = tables.comparison_table({'svamp': row})
  assert table.head[-2:] == ['mean reward before', 'mean reward after']
  assert table.body[0][-2:] == ['0.500', '0.750'] == table.foot[-2:]
  assert len(table.head) == len(table.body[0]) == len(table.foot) == 10
  assert 'a reward of 1 or more' in table.note
