//! The names of the GenAI conventions, in the three dialects that are in the wild: up to v1.36, v1.41.1, and those of the new repository.

pub(super) const OPERATION: &str = "gen_ai.operation.name";
/// The newest name first.
pub(super) const PROVIDER: &[&str] = &["gen_ai.provider.name", "gen_ai.system"];
/// What was asked for: the name that policies and prices know. What answered may carry a date.
pub(super) const MODEL: &[&str] = &["gen_ai.request.model", "gen_ai.response.model"];
pub(super) const INPUT: &[&str] = &["gen_ai.usage.input_tokens", "gen_ai.usage.prompt_tokens"];
pub(super) const OUTPUT: &[&str] = &["gen_ai.usage.output_tokens", "gen_ai.usage.completion_tokens"];
pub(super) const CACHE_READ: &[&str] = &["gen_ai.usage.cache_read.input_tokens"];
pub(super) const CACHE_WRITE: &[&str] =
    &["gen_ai.usage.cache_write.input_tokens", "gen_ai.usage.cache_creation.input_tokens"];
pub(super) const REASONING: &[&str] = &["gen_ai.usage.reasoning.output_tokens"];
pub(super) const ERROR: &str = "error.type";
/// Seconds.
pub(super) const FIRST_CHUNK: &str = "gen_ai.response.time_to_first_chunk";
/// A cost in another currency than this says nothing.
pub(super) const CURRENCY: (&str, &str) = ("gen_ai.usage.cost.currency", "USD");
/// Where that currency stands beside.
pub(super) const PRICED: &str = "gen_ai.usage.cost.amount";
/// What an error is called that has no type.
pub(super) const OTHER: &str = "_OTHER";

/// Every attribute that is read, beside the configured ones.
pub(super) fn all() -> impl Iterator<Item = &'static str> {
    let lists = [PROVIDER, MODEL, INPUT, OUTPUT, CACHE_READ, CACHE_WRITE, REASONING];
    lists.into_iter().flatten().copied().chain([OPERATION, ERROR, FIRST_CHUNK, CURRENCY.0])
}

/// What a span is about.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Operation {
    /// A model is called: its tokens count.
    Inference,
    /// A tool is called.
    Tool,
    /// Others are called, whose spans count for themselves.
    Agent,
    /// Something of the conventions that is no step.
    Quiet,
    /// None that this version knows.
    Unknown,
}

/// The operation of a name.
pub(super) fn operation(name: &str) -> Operation {
    match name {
        "chat" | "generate_content" | "text_completion" | "embeddings" => Operation::Inference,
        "execute_tool" => Operation::Tool,
        "invoke_agent" | "invoke_workflow" => Operation::Agent,
        // usage on a fetched response was counted when it was made; the others call models in spans of their own
        "create_agent"
        | "retrieval"
        | "plan"
        | "fetch_response"
        | "create_memory"
        | "update_memory"
        | "upsert_memory"
        | "delete_memory"
        | "search_memory"
        | "create_memory_store"
        | "delete_memory_store" => Operation::Quiet,
        _ => Operation::Unknown,
    }
}

/// A provider as v1.41.1 spells it.
pub(super) fn provider(name: &str) -> &str {
    match name {
        "xai" => "x_ai",
        "az.ai.inference" => "azure.ai.inference",
        "az.ai.openai" => "azure.ai.openai",
        "vertex_ai" => "gcp.vertex_ai",
        "gemini" => "gcp.gemini",
        name => name,
    }
}
