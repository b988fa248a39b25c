// Parameters given statistics: exact draws from their conjugate posteriors, and the parameters of the predictive
// distribution, in which the posterior is integrated out. Reference: pyfast/reference/spn.py.
#include "spn/gammas.h"
#include "spn/laws.h"
#include "spn/posteriors.h"

namespace pyfast::spn {
namespace {

// A leaf that is no table.
template <class F>
void draw_curve(uint8_t family, const double* prior, const int64_t* counts, double quantum, Stream stream, F* out) {
    const Moments o(counts, quantum);
    double c0, c1 = 0, c2 = 0, m = 0;
    if (family == gaussian) {
        const Normal posterior(prior, o);
        const double precision = std::exp(log_gamma_draw(posterior.a, stream)) / posterior.b;
        m = posterior.m + normal(stream) / std::sqrt(posterior.kappa * precision);
        c0 = 0.5 * (std::log(precision) - log_two_pi);
        c2 = -0.5 * precision;
    } else {
        const Rate posterior(family, prior, o);
        const double log_rate = log_gamma_draw(posterior.a, stream) - std::log(posterior.b), rate = std::exp(log_rate);
        c0 = family == poisson ? -rate : log_rate;
        c1 = family == poisson ? log_rate : -rate;
    }
    out[0] = F(c0), out[1] = F(c1), out[2] = F(c2), out[3] = F(m);
}

struct State {
    const int64_t *weight_counts, *leaf_counts, *leaf_prior;
    const double *alpha, *prior;

    State(const Graph& g, const Strided& weight_counts, const Strided& leaf_counts, const Strided& alpha,
          const Strided& prior, const Strided& leaf_prior)
        : weight_counts(data<const int64_t>(weight_counts, "weight_counts", {g.weights})),
          leaf_counts(data<const int64_t>(leaf_counts, "leaf_counts", {g.parameters})),
          leaf_prior(data<const int64_t>(leaf_prior, "leaf_prior", {g.leaves})),
          alpha(data<const double>(alpha, "alpha", {g.nodes})),
          prior(data<const double>(prior, "prior", {-1})) {
        for (int64_t i = 0; i < g.nodes; ++i) {
            if (g.kind[i] == sum && !(this->alpha[i] > 0 && std::isfinite(this->alpha[i])))
                throw py::value_error("alpha must be positive and finite at every sum");
            if (g.kind[i] != leaf) continue;
            const int64_t from = this->leaf_prior[g.leaf_of[i]], size = g.width[g.variable[i]];
            if (from < 0 || from + size > prior.shape[0]) throw py::index_error("leaf_prior must lie within prior");
            check_leaf(g, g.leaf_of[i], g.variable[i]);
        }
        for (int64_t j = 0; j < g.weights; ++j)
            if (this->weight_counts[j] < 0) throw py::value_error("weight_counts must not be negative");
    }

  private:
    // A Gamma draw of a shape that is none would never end.
    void check_leaf(const Graph& g, int64_t leaf, int64_t v) const {
        const double* law = prior + leaf_prior[leaf];
        const int64_t* seen = leaf_counts + g.leaf_first[leaf];
        const auto good = [](double x) { return x > 0 && std::isfinite(x); };
        bool priors = true, counts = true;
        if (g.family[v] == table) {
            for (int64_t c = 0; c < g.width[v]; ++c) priors &= good(law[c]), counts &= seen[c] >= 0;
        } else if (g.family[v] == own) {
            counts = seen[0] >= 0;
        } else if (g.family[v] == gaussian) {
            const Normal p(law, Moments(seen, g.quantum[v]));
            priors = std::isfinite(law[0]) && good(law[1]) && good(law[2]) && good(law[3]);
            counts = seen[0] >= 0 && std::isfinite(p.m) && good(p.b);
        } else {
            const Rate p(g.family[v], law, Moments(seen, g.quantum[v]));
            priors = good(law[0]) && good(law[1]);
            counts = seen[0] >= 0 && good(p.a) && good(p.b);
        }
        if (!priors) throw py::value_error("prior must be positive and finite at every leaf");
        if (!counts) throw py::value_error("leaf_counts must be the statistics of values");
    }
};

// Calls each(node) for all nodes.
template <class Each>
void for_nodes(const Graph& g, Each each) {
#pragma omp parallel for schedule(dynamic, 256) if (parallel(g.weights + g.parameters))
    for (int64_t i = 0; i < g.nodes; ++i)
        if (g.kind[i] != product) each(i);
}

// Dirichlet draws of neighbouring nodes, their Gammas drawn together.
class Dirichlets {
  public:
    Dirichlets(uint64_t seed, uint64_t what) : gammas_(seed, what) {}

    template <class Shape>
    void add(int64_t n, uint64_t name, Shape shape) {
        for (int64_t j = 0; j < n; ++j) {
            shapes_.push_back(shape(j));
            names_.push_back(name + uint64_t(j));
        }
        sizes_.push_back(n);
    }

    // Calls each(exp(log), their sum, log, n) in the order of `add`; the logarithms are such that none is positive.
    template <class Each>
    void draw(Each each) {
        const int64_t all = int64_t(shapes_.size());
        double* log = shapes_.data();
        gammas_.draw(log, names_.data(), all);
        for (int64_t first = 0; int64_t n : sizes_) {
            const double most = *std::max_element(log + first, log + first + n);
            for (int64_t j = first; j < first + n; ++j) log[j] -= most;
            first += n;
        }
        linear_.resize(all);
#pragma omp simd
        for (int64_t j = 0; j < all; ++j) linear_[j] = exp(log[j]);
        for (int64_t first = 0; int64_t n : sizes_) {
            double total = 0;
            for (int64_t j = first; j < first + n; ++j) total += linear_[j];
            each(linear_.data() + first, total, log + first, n);
            first += n;
        }
        shapes_.clear(), names_.clear(), sizes_.clear();
    }

  private:
    Gammas gammas_;
    std::vector<double> shapes_, linear_;
    std::vector<uint64_t> names_;
    std::vector<int64_t> sizes_;
};

// Where to part the nodes, such that each part has its share of parameters.
std::vector<int64_t> parts_of(const Graph& g) {
    std::vector<int64_t> parts = {0};
    for (int64_t i = 0, size = 0; i < g.nodes; ++i) {
        size += g.kind[i] == sum ? g.children(i) : g.kind[i] == leaf ? g.width[g.variable[i]] : 0;
        if (size < 2048 && i + 1 < g.nodes) continue;
        parts.push_back(i + 1);
        size = 0;
    }
    return parts;
}

template <class F>
void draw_all(const Graph& g, const State& s, uint64_t seed, uint64_t what, F* weights, F* leaves) {
    constexpr uint64_t of_leaf = uint64_t(1) << 47, of_curve = uint64_t(1) << 63;  // names of random numbers
    const std::vector<int64_t> parts = parts_of(g);
#pragma omp parallel if (parallel(g.weights + g.parameters))
    {
        Dirichlets sums(seed, what), tables(seed, what);
        std::vector<F*> to;
        std::vector<double> shares;
#pragma omp for schedule(dynamic)
        for (size_t p = 1; p < parts.size(); ++p) {
            F* w = nullptr;
            to.clear();
            for (int64_t i = parts[p - 1]; i < parts[p]; ++i) {
                if (g.kind[i] == sum) {
                    const int64_t first = g.first_weight[i];
                    if (!w) w = weights + first;
                    sums.add(g.children(i), uint64_t(first),
                             [&](int64_t j) { return s.alpha[i] + double(s.weight_counts[first + j]); });
                } else if (g.kind[i] == leaf) {
                    const int64_t leaf = g.leaf_of[i], v = g.variable[i], at = g.leaf_first[leaf];
                    const double* prior = s.prior + s.leaf_prior[leaf];
                    if (g.family[v] == own) {
                        Stream stream(seed, what, of_curve | uint64_t(i));
                        shares.resize(g.width[v]);
                        g.owns[v].posterior(prior, s.leaf_counts + at, shares.data());
                        const int64_t drawn = g.owns[v].choose(shares.data(), stream.uniform());
                        std::fill_n(leaves + at, g.width[v], F(-INFINITY));
                        leaves[at + drawn] = 0;
                    } else if (g.family[v] == table) {
                        to.push_back(leaves + at);
                        tables.add(g.width[v], of_leaf | uint64_t(at),
                                   [&](int64_t c) { return prior[c] + double(s.leaf_counts[at + c]); });
                    } else
                        draw_curve(g.family[v], prior, s.leaf_counts + at, g.quantum[v],
                                   Stream(seed, what, of_curve | uint64_t(i)), leaves + at);
                }
            }
            sums.draw([&](const double* linear, double total, const double*, int64_t n) {
                for (int64_t j = 0; j < n; ++j) *w++ = F(linear[j] / total);
            });
            tables.draw([&, t = size_t(0)](const double*, double total, const double* log, int64_t n) mutable {
                const double norm = log_of_normal(total);
                for (int64_t c = 0; c < n; ++c) to[t][c] = F(log[c] - norm);
                ++t;
            });
        }
    }
}

void draw(const std::vector<Strided>& graph, const Strided& weight_counts, const Strided& leaf_counts,
          const Strided& alpha, const Strided& prior, const Strided& leaf_prior, uint64_t seed, uint64_t what,
          const Strided& weights, const Strided& leaves) {
    const Graph g(graph);
    const State s(g, weight_counts, leaf_counts, alpha, prior, leaf_prior);
    with_floats(weights, [&]<class F>(F) {
        draw_all<F>(g, s, seed, what, data<F>(weights, "weights", {g.weights}),
                    data<F>(leaves, "leaves", {g.parameters}));
    });
}

void predict(const std::vector<Strided>& graph, const Strided& weight_counts, const Strided& leaf_counts,
             const Strided& alpha, const Strided& prior, const Strided& leaf_prior, const Strided& weights,
             const Strided& leaves) {
    const Graph g(graph);
    const State s(g, weight_counts, leaf_counts, alpha, prior, leaf_prior);
    const auto run = [&]<class F>(F) {
        F *w = data<F>(weights, "weights", {g.weights}), *l = data<F>(leaves, "leaves", {g.parameters});
        for_nodes(g, [&](int64_t i) {
            if (g.kind[i] == sum) {
                const int64_t first = g.first_weight[i], n = g.children(i);
                double total = double(n) * s.alpha[i];
                for (int64_t j = 0; j < n; ++j) total += double(s.weight_counts[first + j]);
                for (int64_t j = 0; j < n; ++j)
                    w[first + j] = F((s.alpha[i] + double(s.weight_counts[first + j])) / total);
                return;
            }
            const int64_t leaf = g.leaf_of[i], v = g.variable[i], at = g.leaf_first[leaf];
            const double* prior = s.prior + s.leaf_prior[leaf];
            if (g.family[v] == own) return g.owns[v].posterior(prior, s.leaf_counts + at, l + at);
            predict_leaf(g.family[v], prior, s.leaf_counts + at, g.width[v], g.quantum[v], l + at);
        });
    };
    weights.is<double>() ? run(double()) : run(float());
}

// log p(X, Z): weights and leaves integrated out, less what the leaves of a column share.
double log_joint(const std::vector<Strided>& graph, const Strided& weight_counts, const Strided& leaf_counts,
                 const Strided& alpha, const Strided& prior, const Strided& leaf_prior) {
    const Graph g(graph);
    const State s(g, weight_counts, leaf_counts, alpha, prior, leaf_prior);
    double total = 0;
    for (int64_t i = 0; i < g.nodes; ++i) {
        if (g.kind[i] == leaf) {
            const int64_t leaf = g.leaf_of[i], v = g.variable[i];
            const int64_t* seen = s.leaf_counts + g.leaf_first[leaf];
            const double* prior = s.prior + s.leaf_prior[leaf];
            total += g.family[v] == own ? g.owns[v].log_evidence(prior, seen)
                                        : log_evidence(g.family[v], prior, seen, g.width[v], g.quantum[v]);
        } else if (g.kind[i] == sum) {
            const int64_t* counts = s.weight_counts + g.first_weight[i];
            int64_t n = 0;
            for (int64_t j = 0; j < g.children(i); ++j) {
                if (!counts[j]) continue;
                n += counts[j];
                total += log_gamma(s.alpha[i] + double(counts[j])) - log_gamma(s.alpha[i]);
            }
            const double mass = s.alpha[i] * double(g.children(i));
            if (n) total += log_gamma(mass) - log_gamma(mass + double(n));
        }
    }
    return total;
}

}  // namespace

void bind_draws(py::module_& m) {
    const py::call_guard<py::gil_scoped_release> nogil;
    m.def("draw", &draw, nogil);
    m.def("log_joint", &log_joint, nogil);
    m.def("predict", &predict, nogil);
}

}  // namespace pyfast::spn
