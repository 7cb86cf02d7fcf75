"""Time-outs that are written down, for a run that goes on."""

from gft_jax.rewards.journal import Journal


def test_journal_survives_a_line_cut_by_a_kill(tmp_path):
  path = tmp_path / 'timeouts.jsonl'
  Journal(path).record('gft/1', (3, 5))
  with path.open('a') as file:
    file.write('\n{"batch": "gft/2", "posi')
  journal = Journal(path)
  assert journal.replay('gft/1') == (3, 5)
  assert journal.replay('gft/2') == ()
  journal.record('gft/2', (1,))
  assert Journal(path).replay('gft/2') == (1,)
