// Parameters given statistics: exact draws from their conjugate posteriors, and the parameters of the predictive
// distribution, in which the posterior is integrated out. Reference: pyfast/reference/spn.py.
#include "spn/laws.h"
#include "spn/leaves.h"

namespace pyfast::spn {
namespace {

constexpr double log_two_pi = 1.83787706640934548356;

double log_gamma(double x) {
    int sign;
    return ::lgamma_r(x, &sign);
}

// Normal-inverse-gamma posterior of a Gaussian's mean and precision.
struct Normal {
    double m, kappa, a, b;
    Normal(const double* prior, const Moments& o) {
        const double mean = o.n > 0 ? o.sum / o.n : 0, spread = std::max(o.squares - o.sum * mean, 0.0);
        kappa = prior[1] + o.n;
        m = (prior[1] * prior[0] + o.sum) / kappa;
        a = prior[2] + 0.5 * o.n;
        b = prior[3] + 0.5 * spread + 0.5 * prior[1] * o.n * (mean - prior[0]) * (mean - prior[0]) / kappa;
    }
};

// Gamma posterior of a rate.
struct Rate {
    double a, b;
    Rate(uint8_t family, const double* prior, const Moments& o)
        : a(prior[0] + (family == poisson ? o.sum : o.n)), b(prior[1] + (family == poisson ? o.n : o.sum)) {}
};

// exp(log), normalised; or its logarithm
template <bool logarithm, class F>
void normalise(const std::vector<double>& log, int64_t n, F* out) {
    const double most = *std::max_element(log.begin(), log.begin() + n);
    double total = 0;
    for (int64_t j = 0; j < n; ++j) total += std::exp(log[j] - most);
    const double norm = most + std::log(total);
    for (int64_t j = 0; j < n; ++j) out[j] = F(logarithm ? log[j] - norm : std::exp(log[j] - norm));
}

template <class F>
void draw_leaf(uint8_t family, const double* prior, const int64_t* counts, int64_t width, double quantum,
               Stream& stream, std::vector<double>& room, F* out) {
    if (family == table) {
        for (int64_t c = 0; c < width; ++c) room[c] = log_gamma_draw(prior[c] + double(counts[c]), stream);
        return normalise<true>(room, width, out);
    }
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

template <class F>
void predict_leaf(uint8_t family, const double* prior, const int64_t* counts, int64_t width, double quantum, F* out) {
    if (family == table) {
        double total = 0;
        for (int64_t c = 0; c < width; ++c) total += prior[c] + double(counts[c]);
        for (int64_t c = 0; c < width; ++c) out[c] = F(std::log((prior[c] + double(counts[c])) / total));
        return;
    }
    const Moments o(counts, quantum);
    double c0, c1, c2, m = 0;
    if (family == gaussian) {  // Student's t
        const Normal p(prior, o);
        const double dof = 2 * p.a, square = p.b * (1 + 1 / p.kappa) / p.a;
        c0 = log_gamma(0.5 * (dof + 1)) - log_gamma(0.5 * dof) - 0.5 * std::log(dof * square * 3.14159265358979323846);
        c1 = -0.5 * (dof + 1);
        c2 = 1 / (dof * square);
        m = p.m;
    } else {
        const Rate p(family, prior, o);
        if (family == poisson) {  // negative binomial
            c0 = p.a * (std::log(p.b) - std::log(p.b + 1)) - log_gamma(p.a);
            c1 = p.a;
            c2 = -std::log(p.b + 1);
        } else {  // Lomax
            c0 = std::log(p.a) - std::log(p.b);
            c1 = -(p.a + 1);
            c2 = 1 / p.b;
        }
    }
    out[0] = F(c0), out[1] = F(c1), out[2] = F(c2), out[3] = F(m);
}

// log of the probability of what a leaf has seen, its parameters integrated out
double log_evidence(uint8_t family, const double* prior, const int64_t* counts, int64_t width, double quantum) {
    if (family == table) {
        double mass = 0, n = 0, out = 0;
        for (int64_t c = 0; c < width; ++c) {
            mass += prior[c], n += double(counts[c]);
            if (counts[c]) out += log_gamma(prior[c] + double(counts[c])) - log_gamma(prior[c]);
        }
        return out + log_gamma(mass) - log_gamma(mass + n);
    }
    const Moments o(counts, quantum);
    if (o.n == 0) return 0;
    if (family == gaussian) {
        const Normal p(prior, o);
        return -0.5 * o.n * log_two_pi + 0.5 * std::log(prior[1] / p.kappa) + prior[2] * std::log(prior[3]) -
               p.a * std::log(p.b) + log_gamma(p.a) - log_gamma(prior[2]);
    }
    const Rate p(family, prior, o);
    return prior[0] * std::log(prior[1]) - p.a * std::log(p.b) + log_gamma(p.a) - log_gamma(prior[0]);
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
        }
    }
};

// Calls each(node) for all nodes.
template <class Each>
void for_nodes(const Graph& g, Each each) {
#pragma omp parallel if (parallel(g.weights + g.parameters))
    {
        std::vector<double> room;
#pragma omp for schedule(dynamic, 256)
        for (int64_t i = 0; i < g.nodes; ++i) {
            if (g.kind[i] == product) continue;
            room.resize(std::max<size_t>(room.size(), g.kind[i] == sum ? g.children(i) : g.width[g.variable[i]]));
            each(i, room);
        }
    }
}

void draw(const std::vector<Strided>& graph, const Strided& weight_counts, const Strided& leaf_counts,
          const Strided& alpha, const Strided& prior, const Strided& leaf_prior, uint64_t seed, uint64_t what,
          const Strided& weights, const Strided& leaves) {
    const Graph g(graph);
    const State s(g, weight_counts, leaf_counts, alpha, prior, leaf_prior);
    const auto run = [&]<class F>(F) {
        F *w = data<F>(weights, "weights", {g.weights}), *l = data<F>(leaves, "leaves", {g.parameters});
        for_nodes(g, [&](int64_t i, std::vector<double>& room) {
            Stream stream(seed, what, uint64_t(i));
            if (g.kind[i] == sum) {
                const int64_t first = g.first_weight[i], n = g.children(i);
                for (int64_t j = 0; j < n; ++j)
                    room[j] = log_gamma_draw(s.alpha[i] + double(s.weight_counts[first + j]), stream);
                return normalise<false>(room, n, w + first);
            }
            const int64_t leaf = g.leaf_of[i], v = g.variable[i], at = g.leaf_first[leaf];
            draw_leaf(g.family[v], s.prior + s.leaf_prior[leaf], s.leaf_counts + at, g.width[v], g.quantum[v], stream,
                      room, l + at);
        });
    };
    weights.is<double>() ? run(double()) : run(float());
}

void predict(const std::vector<Strided>& graph, const Strided& weight_counts, const Strided& leaf_counts,
             const Strided& alpha, const Strided& prior, const Strided& leaf_prior, const Strided& weights,
             const Strided& leaves) {
    const Graph g(graph);
    const State s(g, weight_counts, leaf_counts, alpha, prior, leaf_prior);
    const auto run = [&]<class F>(F) {
        F *w = data<F>(weights, "weights", {g.weights}), *l = data<F>(leaves, "leaves", {g.parameters});
        for_nodes(g, [&](int64_t i, std::vector<double>&) {
            if (g.kind[i] == sum) {
                const int64_t first = g.first_weight[i], n = g.children(i);
                double total = double(n) * s.alpha[i];
                for (int64_t j = 0; j < n; ++j) total += double(s.weight_counts[first + j]);
                for (int64_t j = 0; j < n; ++j)
                    w[first + j] = F((s.alpha[i] + double(s.weight_counts[first + j])) / total);
                return;
            }
            const int64_t leaf = g.leaf_of[i], v = g.variable[i], at = g.leaf_first[leaf];
            predict_leaf(g.family[v], s.prior + s.leaf_prior[leaf], s.leaf_counts + at, g.width[v], g.quantum[v],
                         l + at);
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
            total += log_evidence(g.family[v], s.prior + s.leaf_prior[leaf], s.leaf_counts + g.leaf_first[leaf],
                                  g.width[v], g.quantum[v]);
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
