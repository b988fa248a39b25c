// What a tree that is never built says of samples that are not in it: see implicit.h.
#pragma once

#include "spn/implicit.h"
#include "spn/posteriors.h"
#include "spn/values.h"

namespace pyfast::spn {

class Predictions {
  public:
    explicit Predictions(const Implicit& tree) : tree_(tree) {}

    double log_likelihood(const Sample& s) const { return value(tree_.root_, s, Implicit::all(s)).log(); }

    // Fills in what is missing, given the rest: out (variables)
    template <class Real>
    void complete(const Sample& s, Real* out, Draws& u, Stream& values) const {
        complete(tree_.root_, tree_.scope_.data(), s, Implicit::all(s), out, u, values);
    }

    // Of all that is in the tree, parameters integrated out.
    double log_joint() const { return log_joint(tree_.root_); }

  private:
    const Implicit& tree_;

    Scaled value(const Product& p, const Sample& x, Implicit::Span rare, int32_t from) const {
        return tree_.over(p, x, rare, from, [&](const Sum& s, Implicit::Span some) { return value(s, x, some); });
    }

    Scaled value(const Sum& s, const Sample& x, Implicit::Span rare) const {
        Scaled out = tree_.untouched(s, x, rare);
        out *= tree_.unused(s);
        for (const Child& c : s.used) {
            Scaled part = value(*c.product, x, rare, s.first);
            part *= tree_.each() + double(c.count);
            out += part;
        }
        out *= 1 / (tree_.mass_ + double(s.total));
        return out;
    }

    template <class Real>
    void complete(const Sum& s, const int32_t* scope, const Sample& x, Implicit::Span rare, Real* out, Draws& u,
                  Stream& values) const {
        Scaled sum = tree_.untouched(s, x, rare);
        sum *= tree_.unused(s);
        const Product* chosen = nullptr;
        for (const Child& c : s.used) {
            Scaled part = value(*c.product, x, rare, s.first);
            part *= tree_.each() + double(c.count);
            sum += part;
            if (u() < ratio(part, sum)) chosen = c.product.get();
        }
        if (!chosen) {
            const int64_t nothing[4] = {};
            for (int32_t i = 0; i < s.size; ++i) draw_value(scope[i], x, nullptr, nothing, out, values);
            return;
        }
        const Product& p = *chosen;
        Inside in(p, rare.begin, rare.end, s.first);
        for (const Sum& part : p.sums) {
            const Rare* end = in.until(part.first + part.size);
            complete(part, p.scope.data() + part.first, x, {in.begin, end}, out, u, values);
            in.begin = end;
        }
        for (size_t i = 0; i < p.at.size(); ++i)
            draw_value(p.scope[tree_.first_leaf(p) + i], x, p.chance.data() + p.at[i] + i, p.seen.data() + p.at[i], out,
                       values);
    }

    // From a leaf's predictive: of a table, its chances, or the prior's without any.
    template <class Real>
    void draw_value(int32_t v, const Sample& x, const double* chance, const int64_t* seen, Real* out,
                    Stream& values) const {
        if (x.x[v] == x.x[v]) return;
        const double* prior = tree_.prior_ + tree_.prior_at_[v];
        if (tree_.family_[v] == table) {
            double rest = values.uniform();
            int64_t c = 0;
            for (; c + 1 < tree_.width_[v]; ++c)
                if ((rest -= chance ? chance[c] : prior[c] / tree_.prior_mass_[v]) < 0) break;
            out[v] = Real(c);
        } else {
            double curve[4];
            predict_leaf(tree_.family_[v], prior, seen, tree_.width_[v], tree_.quantum_[v], curve);
            out[v] = Real(value_draw(uint8_t(tree_.family_[v] + 3), curve, values));  // of the predictive: see graph.h
        }
    }

    double log_joint(const Sum& s) const {
        double out = rising(tree_.mass_, -double(s.total));
        for (const Child& c : s.used) {
            out += rising(tree_.each(), double(c.count));
            const Product& p = *c.product;
            for (size_t i = 0; i < p.at.size(); ++i) {
                const int32_t v = p.scope[tree_.first_leaf(p) + i];
                out += log_evidence(tree_.family_[v], tree_.prior_ + tree_.prior_at_[v], p.seen.data() + p.at[i],
                                    tree_.width_[v], tree_.quantum_[v]);
            }
            for (const Sum& below : p.sums) out += log_joint(below);
        }
        return out;
    }
    // log Gamma(a + n) - log Gamma(a), or its negative for -n
    static double rising(double a, double n) {
        int sign;
        const double size = ::lgamma_r(a + std::abs(n), &sign) - ::lgamma_r(a, &sign);
        return n < 0 ? -size : size;
    }
};

}  // namespace pyfast::spn
