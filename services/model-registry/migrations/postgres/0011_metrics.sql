-- Whoever adds metrics holds the row of their run (`LOCK_RUNS`), so that it need not be looked for again for each value, which
-- took half the time of logging a thousand. The other direction stays checked here: a run that has metrics cannot be deleted.
ALTER TABLE metrics DROP CONSTRAINT metrics_run_fkey;
ALTER TABLE latest_metrics DROP CONSTRAINT latest_metrics_run_fkey;

CREATE FUNCTION refuse_if_run_has_metrics() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
    -- The row is locked by now: what was added to the run is committed, but a snapshot from before would not show it.
    IF current_setting('transaction_isolation') <> 'read committed' THEN
        RAISE EXCEPTION 'runs can be deleted by transactions that read what is committed, by no other';
    END IF;
    IF EXISTS (SELECT 1 FROM metrics WHERE run = OLD.id) OR EXISTS (SELECT 1 FROM latest_metrics WHERE run = OLD.id) THEN
        RAISE EXCEPTION 'run "%" has metrics', OLD.id USING ERRCODE = 'foreign_key_violation';
    END IF;
    IF TG_OP = 'UPDATE' THEN
        RETURN NEW;
    END IF;
    RETURN OLD;
END $$;
CREATE TRIGGER measured_runs BEFORE DELETE OR UPDATE OF id ON runs FOR EACH ROW
EXECUTE FUNCTION refuse_if_run_has_metrics();
