"""The paper's equations again: loops over lists, math, and no jax.

Slow, literal and independent of gft_jax; the tests compare the two.
"""

import itertools
import math
from fractions import Fraction


def token_mean(values, mask):
  """(total, weight) of [rows][T]."""
  counted = [v for row, m in zip(values, mask) for v, on in zip(row, m) if on]
  return math.fsum(counted), len(counted)


def sequence_mean(values, mask):
  """(sum of row means, non-empty rows) of [rows][T]."""
  means = []
  for row, m in zip(values, mask):
    counted = [v for v, on in zip(row, m) if on]
    if counted:
      means.append(math.fsum(counted) / len(counted))
  return math.fsum(means), len(means)


def token_sum(values, mask):
  """(total, non-empty rows) of [rows][T]."""
  return token_mean(values, mask)[0], sum(any(m) for m in mask)


def length_mean(values, mask):
  """(sum of tokens / T, non-empty rows) of [rows][T]."""
  total, rows = token_sum(values, mask)
  return total / len(values[0]), rows


def length_sum(values, mask):
  """(sum of tokens / T, 1) of [rows][T]."""
  return length_mean(values, mask)[0], 1


def group_normalized(rewards, members, epsilon=1e-6):
  """Eq. 4 on [B][G]."""
  return [_normalized(r, m, epsilon) for r, m in zip(rewards, members)]


def _normalized(rewards, members, epsilon):
  valid = [r for r, on in zip(rewards, members) if on]
  if len(valid) == 1:
    mean, std = 0.0, 1.0
  elif len(set(valid)) <= 1:
    return [0.0] * len(rewards)
  else:
    mean = math.fsum(valid) / len(valid)
    squares = math.fsum((r - mean) ** 2 for r in valid)
    std = math.sqrt(squares / (len(valid) - 1))
  return [
    (r - mean) / (std + epsilon) if on else 0.0
    for r, on in zip(rewards, members)
  ]


def mean_centred(rewards, members):
  """r - mean(r) on [B][G]; a group of one keeps r."""
  out = []
  for row, on in zip(rewards, members):
    valid = [r for r, m in zip(row, on) if m]
    mean = math.fsum(valid) / len(valid) if len(valid) > 1 else 0.0
    out.append([r - mean if m else 0.0 for r, m in zip(row, on)])
  return out


def leave_one_out(rewards, members):
  """r - mean of the others on [B][G]; a group of one keeps r."""
  out = []
  for row, on in zip(rewards, members):
    advantages = []
    for k, r in enumerate(row):
      others = [row[j] for j in range(len(row)) if j != k and on[j]]
      baseline = math.fsum(others) / len(others) if others else 0.0
      advantages.append(r - baseline if on[k] else 0.0)
    out.append(advantages)
  return out


def dynamic_coefficient(p, tau):
  """Eq. 5 with the code's strict inequality, of a probability."""
  return 1.0 if p > tau else p


def gft_loss(logp, rewards, members, tokens, tau):
  """Eq. 21 over the tokens of [B][G][T], and its gradient -c A / tokens."""
  count = sum(on for group in tokens for row in group for on in row)
  total, gradient = [], []
  for b, advantages in enumerate(group_normalized(rewards, members)):
    gradient.append([])
    for g, advantage in enumerate(advantages):
      gradient[b].append([])
      for l, on in zip(logp[b][g], tokens[b][g]):
        slope = 0.0
        if on:
          slope = -dynamic_coefficient(math.exp(l), tau) * advantage
          total.append(slope * l)
        gradient[b][g].append(slope / max(count, 1))
  return math.fsum(total) / max(count, 1), gradient


def grpo_token_loss(l, behavior, advantage, low, high, dual_clip=None):
  """Clipped surrogate of one token."""
  ratio = math.exp(min(max(l - behavior, -20.0), 20.0))
  clipped = min(max(ratio, 1 - low), 1 + high)
  loss = max(-advantage * ratio, -advantage * clipped)
  if dual_clip is not None and advantage < 0:
    loss = min(loss, -advantage * dual_clip)
  return loss


def psft_token_loss(l, old, high):
  return -min(math.exp(min(max(l - old, -20.0), 20.0)), 1 + high)


def luffy_token_loss(l, advantage, gamma):
  p = math.exp(l)
  return -advantage * p / (p + gamma)


def chord_token_loss(l):
  p = math.exp(l)
  return -p * (1 - p) * l


def chord_mu(step, peak, valley, warmup, decay):
  if step < warmup:
    return peak * step / warmup
  s = step - warmup
  if s >= decay:
    return valley
  return valley + (peak - valley) * 0.5 * (1 + math.cos(math.pi * s / decay))


def log_softmax(logits):
  largest = max(logits)
  log_z = largest + math.log(math.fsum(math.exp(z - largest) for z in logits))
  return [z - log_z for z in logits]


def logits(hidden, head, temperature=1.0):
  """hidden [D] and head [D][V] to [V]."""
  return [
    math.fsum(h * row[v] for h, row in zip(hidden, head)) / temperature
    for v in range(len(head[0]))
  ]


def target_logprob(hidden, head, target, temperature=1.0):
  """(log-probability of the target, entropy) at one position."""
  logq = log_softmax(logits(hidden, head, temperature))
  return logq[target], -math.fsum(math.exp(l) * l for l in logq)


def kl(hidden, head, reference_hidden, reference_head):
  """KL(policy || reference) over the vocabulary at one position."""
  logp = log_softmax(logits(hidden, head))
  logq = log_softmax(logits(reference_hidden, reference_head))
  return math.fsum(math.exp(a) * (a - b) for a, b in zip(logp, logq))


def k3(l, reference):
  x = min(max(reference - l, -20.0), 20.0)
  return min(math.exp(x) - x - 1, 10.0)


def pass_at_k(correct, samples, k):
  """Exact: share of the subsets of size k that hold a right answer."""
  wrong = math.comb(samples - correct, k)
  return 1 - Fraction(wrong, math.comb(samples, k))


def pass_at_k_by_counting(correct, samples, k):
  """The same, by listing the subsets."""
  subsets = list(itertools.combinations(range(samples), k))
  return Fraction(sum(min(s) < correct for s in subsets), len(subsets))


def vote(votes, correct):
  """Whether the most frequent vote is right, the first of equals; -1 is none."""
  cast = [v for v in votes if v >= 0]
  if not cast:
    return False
  winner = max(dict.fromkeys(cast), key=cast.count)
  return correct[votes.index(winner)]
