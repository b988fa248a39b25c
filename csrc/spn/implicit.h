// The largest tree of sums over C_s products over C_p parts, of which only what samples use is there: spec of the tree
// in pyfast/spn/_implicit.py.
//
// A child that no other sample passes predicts a sample as the priors do, whatever lies below it: its leaves have seen
// nothing, and all leaves of a variable have one prior. All such children of a sum are one candidate together.
#pragma once

#include "spn/chain_draws.h"
#include "spn/chain_predictive.h"
#include "spn/implicit_nodes.h"

namespace pyfast::spn {

class Implicit {
  public:
    static constexpr int64_t open = -1;  // a choice among children that nothing has used yet, not made so far

    Implicit(int64_t variables, int64_t children, int64_t parts, uint64_t seed, double mass, const uint8_t* family,
             const int64_t* width, const double* quantum, const double* prior)
        : variables(variables),
          children(children),
          parts(parts),
          seed_(seed),
          mass_(mass),
          family_(family),
          width_(width),
          quantum_(quantum),
          prior_(prior),
          prior_at_(variables),
          prior_mass_(variables),
          usual_(variables),
          plain_(variables, 1),
          scope_(variables) {
        int64_t at = 0;
        for (int64_t v = 0; v < variables; at += width[v++]) {
            prior_at_[v] = at;
            scope_[v] = int32_t(v);
            if (family[v] != table) continue;
            for (int64_t c = 0; c < width[v]; ++c) {
                prior_mass_[v] += prior[at + c];
                if (prior[at + c] > prior[at + usual_[v]]) usual_[v] = c;
            }
            if (width[v]) plain_[v] = prior[at + usual_[v]] / prior_mass_[v];
        }
        root_.size = int32_t(variables);
        choices_of_.assign(variables + 1, 1);
        for (int64_t n = 2; n <= variables; ++n) {
            const int64_t p = std::min(n, parts), more = n % p, least = n / p;
            if (more) choices_of_[n] += more * choices_of_[least + 1];
            if (least > 1) choices_of_[n] += (p - more) * choices_of_[least];
        }
        root_.choices = choices_of_[variables];
        root_.plain = plain(scope_.data(), root_.size);
    }

    const int64_t variables, children, parts;

    template <class Real>
    void load(const Real* row, Sample& s) const {
        s.code.resize(variables), s.x.resize(variables), s.untouched.resize(variables);
        s.rare.clear();
        for (int64_t v = 0; v < variables; ++v) {
            double x = double(row[v]);
            const bool there = x == x;
            if (family_[v] == table) {
                s.code[v] = there ? int64_t(x) : width_[v];
                s.untouched[v] = there ? prior_[prior_at_[v] + s.code[v]] / prior_mass_[v] : 1;
            } else if (there) {  // as its statistics remember it
                x = double(std::llrint(x * quantum_[v])) / quantum_[v];
                const int64_t nothing[4] = {};
                const Moments seen(nothing, quantum_[v]);
                s.untouched[v] = std::exp(log_predictive(family_[v], prior_ + prior_at_[v], seen, x));
            } else
                s.untouched[v] = 1;
            s.x[v] = x;
            if (family_[v] == table ? s.code[v] != usual_[v] : there) s.rare.push_back({int32_t(v), int32_t(v)});
        }
    }

    // ---- counts ----

    // Puts a sample with these choices in, making those that are open; or takes it out.
    void add(const Sample& s, int64_t* row, Draws& u) { add(root_, scope_.data(), s, row, &u, true); }
    void remove(const Sample& s, const int64_t* row) { remove(root_, s, row); }

    // Many at once, whose choices are made; then what leaves predict.
    void restore(const Sample& s, int64_t* row) { add(root_, scope_.data(), s, row, nullptr, false); }
    void refresh() { refresh(root_); }
    int64_t choices() const { return root_.choices; }
    int64_t used() const { return 1 + used(root_); }

  private:
    friend class Moves;
    friend class Predictions;

    const uint64_t seed_;
    const double mass_;
    const uint8_t* const family_;
    const int64_t* const width_;
    const double *const quantum_, *const prior_;
    std::vector<int64_t> prior_at_;
    std::vector<double> prior_mass_;
    std::vector<int64_t> usual_;       // code of a table's column
    std::vector<double> plain_;        // its likelihood in a leaf that has seen nothing
    std::vector<int32_t> scope_;       // of the root
    std::vector<int64_t> choices_of_;  // by how many variables a sum is over: sums of an induced tree from it on
    Sum root_;

    double each() const { return mass_ / double(children); }
    double unused(const Sum& s) const { return each() * double(children - int64_t(s.used.size())); }

    struct Span {
        const Rare *begin, *end;
    };
    static Span all(const Sample& s) { return {s.rare.data(), s.rare.data() + s.rare.size()}; }

    Scaled plain(const int32_t* scope, int32_t size) const {
        Scaled out;
        for (int32_t i = 0; i < size; ++i) out *= plain_[scope[i]];
        return out;
    }

    static uint64_t word(const random::Words& w) { return uint64_t(w[0]) << 32 | w[1]; }

    std::unique_ptr<Product> make(const Sum& s, const int32_t* scope, int64_t number) const {
        auto p = std::make_unique<Product>();
        const uint64_t id = word(random::bits(seed_, s.id, uint64_t(number)));
        p->scope.assign(scope, scope + s.size);
        if (s.size > parts) {  // else all parts are of one variable, in any order
            std::vector<std::pair<uint64_t, int32_t>> order(s.size);
            for (int32_t i = 0; i < s.size; ++i)
                order[i] = {word(random::bits(seed_, id, uint64_t(1) << 62 | uint64_t(i))), i};
            std::sort(order.begin(), order.end());
            p->where.resize(s.size);
            for (int32_t i = 0; i < s.size; ++i) {
                p->scope[i] = scope[order[i].second];
                p->where[order[i].second] = i;
            }
        }
        const int32_t many = int32_t(std::min<int64_t>(s.size, parts));
        int32_t first = 0;
        for (int32_t i = 0; i < many; ++i) {
            const int32_t size = s.size / many + (i < s.size % many);
            if (size > 1) {
                Sum& below = p->sums.emplace_back();
                below.id = word(random::bits(seed_, id, uint64_t(1) << 63 | uint64_t(i)));
                below.first = first, below.size = size, below.choices = choices_of_[size];
                below.plain = plain(p->scope.data() + first, size);
            } else {
                p->at.push_back(int64_t(p->seen.size()));
                p->seen.resize(p->seen.size() + width_[p->scope[first]]);
            }
            first += size;
        }
        p->chance.resize(p->seen.size() + p->at.size());
        refresh(*p);
        return p;
    }

    int32_t first_leaf(const Product& p) const { return int32_t(p.scope.size() - p.at.size()); }

    void refresh(Product& p) const {
        Scaled usual;
        for (size_t i = 0; i < p.at.size(); ++i) {
            const int32_t v = p.scope[first_leaf(p) + i];
            if (family_[v] != table) continue;
            const int64_t* seen = p.seen.data() + p.at[i];
            double* chance = p.chance.data() + p.at[i] + i;
            double total = prior_mass_[v];
            for (int64_t c = 0; c < width_[v]; ++c) total += double(seen[c]);
            const double scale = 1 / total;
            for (int64_t c = 0; c < width_[v]; ++c) chance[c] = (prior_[prior_at_[v] + c] + double(seen[c])) * scale;
            chance[width_[v]] = 1;
            usual *= chance[usual_[v]];
        }
        p.usual = usual;
    }
    void refresh(Sum& s) {
        for (Child& c : s.used) {
            refresh(*c.product);
            for (Sum& below : c.product->sums) refresh(below);
        }
    }

    void observe_all(Product& p, const Sample& s, int64_t times, bool now) {
        for (size_t i = 0; i < p.at.size(); ++i) {
            const int32_t v = p.scope[first_leaf(p) + i];
            observe(family_[v], p.seen.data() + p.at[i], s.x[v], quantum_[v], times);
        }
        if (now) refresh(p);
    }

    template <class AnySum>
    static auto find(AnySum& s, int64_t number) {
        return std::lower_bound(s.used.begin(), s.used.end(), number,
                                [](const Child& c, int64_t n) { return c.number < n; });
    }

    int64_t* add(Sum& s, const int32_t* scope, const Sample& x, int64_t* row, Draws* u, bool now) {
        int64_t& number = *row++;
        if (number == open) {
            const int64_t many = children - int64_t(s.used.size());
            number = std::min(int64_t((*u)() * double(many)), many - 1);
            for (const Child& c : s.used) number += c.number <= number;  // they are in order
        }
        auto child = find(s, number);
        if (child == s.used.end() || child->number != number)
            child = s.used.insert(child, Child{number, 0, make(s, scope, number)});
        ++s.total, ++child->count;
        Product& p = *child->product;
        observe_all(p, x, 1, now);
        for (Sum& below : p.sums) row = add(below, p.scope.data() + below.first, x, row, u, now);
        return row;
    }

    const int64_t* remove(Sum& s, const Sample& x, const int64_t* row) {
        const auto child = find(s, *row);
        --s.total;
        if (--child->count == 0) {  // and nothing below is used by others
            s.used.erase(child);
            return row + s.choices;
        }
        Product& p = *child->product;
        observe_all(p, x, -1, true);
        ++row;
        for (Sum& below : p.sums) row = remove(below, x, row);
        return row;
    }

    // A child drawn from the counts; none for all that are not used.
    const Child* pick(const Sum& s, Draws& u) const {
        double rest = u() * (mass_ + double(s.total));
        for (const Child& c : s.used)
            if ((rest -= each() + double(c.count)) < 0) return &c;
        return nullptr;
    }

    // The likelihood below children that nothing has used.
    Scaled untouched(const Sum& s, const Sample& x, Span rare) const {
        Scaled out = s.plain;
        for (const Rare* r = rare.begin; r < rare.end; ++r) out *= x.untouched[r->variable] / plain_[r->variable];
        return out;
    }

    Scaled leaves(const Product& p, const Sample& x, const Inside& in) const {
        Scaled out = p.usual;
        for (const Rare* r = in.begin; r < in.end; ++r) {
            const int32_t v = r->variable, i = r->at - in.shift - first_leaf(p);
            if (family_[v] == table) [[likely]] {
                const double* chance = p.chance.data() + p.at[i] + i;
                out *= chance[x.code[v]] / chance[usual_[v]];
            } else {
                const Moments seen(p.seen.data() + p.at[i], quantum_[v]);
                out *= Scaled::from_log(log_predictive(family_[v], prior_ + prior_at_[v], seen, x.x[v]));
            }
        }
        return out;
    }

    // The product of what each(sum, what is rare there) says of the sums below, and of the leaves.
    template <class Each>
    Scaled over(const Product& p, const Sample& x, Span rare, int32_t from, Each each) const {
        Inside in(p, rare.begin, rare.end, from);
        Scaled out;
        for (const Sum& s : p.sums) {  // a product with sums has turned its scope: no shift
            const Rare* end = in.until(s.first + s.size);
            out *= each(s, Span{in.begin, end});
            in.begin = end;
        }
        out *= leaves(p, x, in);
        return out;
    }

    int64_t used(const Sum& s) const {
        int64_t out = 0;
        for (const Child& c : s.used) {
            out += 1 + int64_t(c.product->sums.size() + c.product->at.size());
            for (const Sum& below : c.product->sums) out += used(below);
        }
        return out;
    }
};

}  // namespace pyfast::spn
