# A rule of Optimisers.jl that steps parameters and 4-bit states in one pass.

module LowbitOptimisersExt

using Lowbit
isdefined(Base, :get_extension) ? (using Optimisers) : (using ..Optimisers)

"What `Lowbit.rule` returns. `adjust` replaces fields by name and calls the constructor with all."
struct Rule <: Optimisers.AbstractRule
    spec::String
    eta::Float32
    beta::Tuple{Float32,Float32}
    epsilon::Float32
    lambda::Float32
    weights::Symbol
    "How many arrays have a state of this rule."
    count::Base.RefValue{Int}
end

function Rule(
    spec;
    eta::Real = 1.0f-3,
    beta::Tuple{Real,Real} = (0.9f0, 0.999f0),
    epsilon::Real = 1.0f-8,
    lambda::Real = 0.01f0,
    weights::Symbol = :plain,
)
    # As JSON, which is checked here, and is plain data where a handle would not be.
    text = Lowbit.json(Lowbit.Spec(spec))
    return Rule(text, eta, beta, epsilon, lambda, weights, Ref(0))
end

Base.show(io::IO, rule::Rule) = print(
    io,
    "Lowbit.rule(", repr(rule.spec), "; eta = ", rule.eta, ", beta = ", rule.beta, ", epsilon = ",
    rule.epsilon, ", lambda = ", rule.lambda, ", weights = ", repr(rule.weights), ")",
)

# Plans have no state of their own, so that all steps of equal arrays share one; and they are kept out
# of the trees, which are for plain data.
const LOCK = ReentrantLock()
const PLANS = Dict{Any,Lowbit.Plan}()
const MOST_PLANS = 10_000

"The plan of one array, named by its number, with gradients of the type that `grad` has."
function plan_of(rule, x, number, grad)
    context = Lowbit.default_context(x)
    type = Lowbit.dtype(grad) == 0 ? x : grad
    key = (rule.spec, rule.weights, number, Lowbit.dtype(x), Lowbit.dtype(type), size(x), context)
    return lock(LOCK) do
        get!(PLANS, key) do
            length(PLANS) < MOST_PLANS || empty!(PLANS)
            f32 = Lowbit.dtype(x) == Lowbit.LOWBIT_DTYPE_F32
            weights = f32 ? :plain : rule.weights
            tensor = Lowbit.Tensor(string(number), x; grad = type, weights = weights)
            Lowbit.Plan(rule.spec, [tensor]; context = context)
        end
    end
end

function Optimisers.init(rule::Rule, x::AbstractArray)
    if !Lowbit.isdense(x)
        throw(ArgumentError("a parameter is a $(typeof(x)), which is not contiguous in memory"))
    end
    number = rule.count[] += 1
    plan = plan_of(rule, x, number, x)
    state = Lowbit.State(plan; zeros = Lowbit.zeros_like(x))
    # "1/m/codes" becomes m_codes.
    names = map(name -> Symbol(join(split(name, '/')[2:end], '_')), Tuple(state.names))
    arrays = NamedTuple{names}(Tuple(state.arrays))
    return (number = number, step = 0, arrays = arrays, scratch = state.scratch)
end

function Optimisers.apply!(rule::Rule, state, x::AbstractArray, dx)
    given = Base.Broadcast.materialize(dx)
    plan = plan_of(rule, x, state.number, given)
    names = [name for (name, _, _) in plan.buffers]
    arrays = collect(AbstractArray, values(state.arrays))
    step = state.step + 1
    Lowbit.step!(
        plan,
        (x,),
        (Lowbit.gradient(given, plan.tensors[1]),),
        Lowbit.State(names, arrays, state.scratch);
        step = step,
        lr = rule.eta,
        beta1 = rule.beta[1],
        beta2 = rule.beta[2],
        eps = rule.epsilon,
        weight_decay = rule.lambda,
    )
    # Nothing: x has its new values.
    return merge(state, (step = step,)), nothing
end

end
