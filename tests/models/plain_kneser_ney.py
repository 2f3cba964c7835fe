"""Modified Kneser-Ney as it stands in the paper, slow and readable: the oracle of test_ngram."""

import collections


class PlainKneserNey:
    """Chen and Goodman (1999), section 3, word for word, in dictionaries of tuples."""

    def __init__(self, documents, order, vocab_size, bos, eos, fallback):
        self.order, self.fallback = order, fallback
        self.num_predicted = vocab_size - (bos is not None and bos != eos)
        begin, end = ([] if mark is None else [mark] for mark in (bos, eos))
        occurrences, lefts = collections.Counter(), collections.defaultdict(set)
        openings = set()
        for document in documents:
            marked = [*begin, *document, *end]
            for n in range(1, order + 1):
                for i in range(len(marked) - n + 1):
                    if i + n - 1 < len(begin):
                        continue  # it would predict <bos>
                    gram = tuple(marked[i : i + n])
                    occurrences[gram] += 1
                    lefts[gram].add(marked[i - 1] if i else "start")
                    if i == 0 and begin:
                        openings.add(gram)
        self.following = collections.defaultdict(dict)
        for gram, occurred in occurrences.items():
            raw = len(gram) == order or gram in openings
            self.following[gram[:-1]][gram[-1]] = occurred if raw else len(lefts[gram])
        self.discounts = [self.estimate(n) for n in range(1, order + 1)]

    def estimate(self, n):
        counts = [c for h, f in self.following.items() if len(h) == n - 1 for c in f.values()]
        n1, n2, n3, n4 = (counts.count(k) for k in (1, 2, 3, 4))
        if not n1 * n2 * n3:
            return self.fallback
        y = n1 / (n1 + 2 * n2)
        found = (1 - 2 * y * n2 / n1, 2 - 3 * y * n3 / n2, 3 - 4 * y * n4 / n3)
        return found if all(0 < d <= k for d, k in zip(found, (1, 2, 3))) else self.fallback

    def probability(self, context, token):
        context = tuple(context)[-(self.order - 1) :] if self.order > 1 else ()
        if context:
            lower = self.probability(context[1:], token)
        else:
            lower = 1 / self.num_predicted
        following = self.following.get(context)
        if not following:
            return lower
        discounts = self.discounts[len(context)]
        taken = {w: discounts[min(count, 3) - 1] for w, count in following.items()}
        share = following.get(token, 0) - taken.get(token, 0.0)
        return (share + sum(taken.values()) * lower) / sum(following.values())
