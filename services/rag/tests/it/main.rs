//! rag from the outside: the real service against a real predict and a real registry with real models.

mod answering;
mod crash;
mod ingesting;
mod quality;
mod searching;
mod world;
