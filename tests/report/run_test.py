from recorded_runs import write_run
from report_pages import Page, drawn

from gft_jax.report.page import write_report
from gft_jax.report.run import goodput, read_run


def test_where_the_time_of_an_interrupted_run_went(tmp_path):
  """200 s, 50 of them in steps that count, half of the others without work."""
  first = {'time/start': 10.0, 'time/compile': 20.0, 'memory/programs': 7}
  back = {
    'time/lost': 12.0,
    'time/down': 75.0,
    'time/save': 1.0,
    'memory/programs': 2,
    'memory/programs_cached': 2,
  }
  step = {'time/data': 1.0, 'time/reward': 2.0, 'time/update': 3.0}
  records = [
    {'stage': 'warm', 'step': 1, 'time/wall': 55.0} | step | first,
    {'stage': 'group', 'step': 1, 'time/wall': 160.0} | step | back,
    {'stage': 'group', 'step': 2, 'time/wall': 190.0, 'time/sample': 40.0},
    {'stage': 'group', 'step': 2, 'time/wall': 200.0, 'time/evaluate': 9.0},
  ]
  folder = write_run(tmp_path, records)
  assert goodput(read_run(folder)) == {
    'sample': 40.0,
    'reward': 4.0,
    'update': 6.0,
    'data': 2.0,
    'compile': 20.0,
    'evaluate': 9.0,
    'save': 1.0,
    'start': 10.0,
    'lost': 12.0,
    'down': 75.0,
    'other': 21.0,
  }
  page = Page(write_report(folder))
  assert drawn(folder) == {'seconds'}
  assert (
    'Goodput 25.0 % (40.0 % while a process was at work)' in page.texts['p']
  )
  assert '9 programs were\ncompiled, 2 of which the cache' in page.texts['p']
  rows = [cells.strip() for cells in page.cells[-33:]]
  assert rows[:3] == ['rollouts', '40.0', '20.0 %']
  assert ['down, no process at work', '75.0', '37.5 %'] == rows[-6:-3]
  assert rows[-3:] == ['other', '21.0', '10.5 %']
  # Neither a stamp nor the night between two processes is a phase.
  assert '0 min 104 s' not in page.texts['p']
  assert '1 min 44 s measured' in page.texts['p']
