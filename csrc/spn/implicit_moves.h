// Moves of a sample through a tree that is never built: see implicit.h.
#pragma once

#include "spn/implicit.h"

namespace pyfast::spn {

// i-SIR from the root down: below a sum, the tree at hand stands for the child that it passes and a fresh one for
// every other child that is used; those that are not stand together, exactly. A row that is in no tree yet gets one.
class Moves {
  public:
    // candidates: trees at a sum, drawn from the counts; 0 is one for every child
    Moves(const Implicit& tree, int64_t candidates)
        : tree_(tree), candidates_(candidates), kept_(tree.choices()), fresh_(tree.choices()) {}

    void move(const Sample& s, int64_t* row, Draws& u) { move(tree_.root_, s, Implicit::all(s), row, u); }

  private:
    const Implicit& tree_;
    const int64_t candidates_;
    std::vector<int64_t> kept_, fresh_;

    // A tree below a product drawn from the counts alone: its choices, and the sample's likelihood there.
    Scaled propose(const Product& p, const Sample& x, Implicit::Span rare, int32_t from, int64_t*& to, Draws& u) const {
        return tree_.over(p, x, rare, from, [&](const Sum& s, Implicit::Span some) {
            if (const Child* c = tree_.pick(s, u)) {
                *to++ = c->number;
                return propose(*c->product, x, some, s.first, to, u);
            }
            to = std::fill_n(to, s.choices, Implicit::open);
            return tree_.untouched(s, x, some);
        });
    }

    // The likelihood of the tree that these choices make below a product.
    Scaled given(const Product& p, const Sample& x, Implicit::Span rare, int32_t from, const int64_t*& row) const {
        return tree_.over(p, x, rare, from, [&](const Sum& s, Implicit::Span some) {
            const auto c = tree_.find(s, *row);
            if (c == s.used.end() || c->number != *row) {
                row += s.choices;
                return tree_.untouched(s, x, some);
            }
            ++row;
            return given(*c->product, x, some, s.first, row);
        });
    }

    // Returns the choices after those of the sum.
    int64_t* move(const Sum& s, const Sample& x, Implicit::Span rare, int64_t* row, Draws& u) {
        const int64_t here = *row;
        const bool some = candidates_ > 0 && int64_t(s.used.size()) > candidates_;
        const Child* chosen = nullptr;
        Scaled sum = tree_.untouched(s, x, rare);
        sum *= tree_.unused(s);
        // One more tree below child c, or below all that are not used: it takes the place of the one kept so far with
        // its share of the sum so far.
        const auto consider = [&](const Child* c, Scaled part) {
            sum += part;
            if (!(u() < ratio(part, sum))) return;
            chosen = c;
            std::swap(fresh_, kept_);
        };
        const auto below = [&](const Child& c) {
            int64_t* to = fresh_.data();
            return propose(*c.product, x, rare, s.first, to, u);
        };
        const auto current = [&](const Child& c) {
            const int64_t* at = row + 1;
            std::copy_n(at, s.choices - 1, fresh_.data());
            return given(*c.product, x, rare, s.first, at);
        };
        if (some) {  // trees from the counts, the choice at the sum too: their likelihoods decide
            const auto c = tree_.find(s, here);
            const bool known = c != s.used.end() && c->number == here;
            sum = known ? current(*c) : tree_.untouched(s, x, rare);
            chosen = known ? &*c : nullptr;
            std::swap(fresh_, kept_);
            for (int64_t i = 1; i < candidates_; ++i) {
                const Child* drawn = tree_.pick(s, u);
                consider(drawn, drawn ? below(*drawn) : tree_.untouched(s, x, rare));
            }
        } else {
            for (const Child& c : s.used) {
                Scaled part = c.number == here ? current(c) : below(c);
                part *= tree_.each() + double(c.count);
                consider(&c, part);
            }
        }
        if (!chosen) return std::fill_n(row, s.choices, Implicit::open);
        *row = chosen->number;
        std::copy_n(kept_.data(), s.choices - 1, ++row);
        const Product& p = *chosen->product;
        Inside in(p, rare.begin, rare.end, s.first);
        for (const Sum& part : p.sums) {
            const Rare* end = in.until(part.first + part.size);
            row = move(part, x, {in.begin, end}, row, u);
            in.begin = end;
        }
        return row;
    }
};

}  // namespace pyfast::spn
