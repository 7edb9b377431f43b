-- Only PostgreSQL has something to change here: what it checks for each metric costs SQLite little.
SELECT 1;
