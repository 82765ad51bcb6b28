-- +goose Up

-- The feed of changes: what arrived, was corrected, or began or ended, for a
-- supplier that asks what is new. What is told, the sealed legal files decide;
-- everything here only says where to look. Rows are found by the transaction
-- that stored them (arrived), as the auditor does: of transactions older than
-- the oldest that is under way no row can come any more.

ALTER TABLE ingest_batch ADD COLUMN arrived xid8 NOT NULL DEFAULT '0';
ALTER TABLE ingest_batch ALTER COLUMN arrived SET DEFAULT pg_current_xact_id();
ALTER TABLE ingest_batch ADD COLUMN changed bytea NOT NULL DEFAULT '' CHECK (octet_length(changed) <= 1048576);
CREATE INDEX ingest_batch_by_arrival ON ingest_batch (arrived, ean, batch_id);
COMMENT ON COLUMN ingest_batch.arrived IS 'Transaction that stored it, by which the feed of changes finds it; 0 before there was one.';
COMMENT ON COLUMN ingest_batch.changed IS 'Which days of which fields were stored for the first time, and which have a later version (package postgres, Changed).';

CREATE TABLE basis_day (
    ean bigint NOT NULL,
    gln bigint NOT NULL,
    day date   NOT NULL,
    PRIMARY KEY (ean, gln, day)
);
CREATE INDEX basis_day_by_day ON basis_day (gln, day, ean);
COMMENT ON TABLE  basis_day IS 'Index of the days on which something in the current legal files begins or ends for a supplier: supply, consent, occupancy, opt-out. Not evidence.';
COMMENT ON COLUMN basis_day.ean IS 'EAN-18 of the metering point.';
COMMENT ON COLUMN basis_day.gln IS 'GLN of the supplier.';
COMMENT ON COLUMN basis_day.day IS 'Local day.';

-- Consents in the order in which they expire.
CREATE INDEX consent_by_expiry ON consent (gln, valid_until, ean, consent_id) WHERE state = 2;

CREATE TABLE change_mark (
    at     timestamptz NOT NULL DEFAULT now(),
    oldest xid8        NOT NULL DEFAULT pg_snapshot_xmin(pg_current_snapshot()),
    next   xid8        NOT NULL DEFAULT pg_snapshot_xmax(pg_current_snapshot()),
    one    boolean     NOT NULL DEFAULT true CHECK (one),
    PRIMARY KEY (at, next)
);
COMMENT ON TABLE  change_mark IS 'Which transactions were under way when: a row a minute, by the gateways, so that the feed of changes can be read from a time on, and how far it lags behind can be told. Insert only.';
COMMENT ON COLUMN change_mark.at IS 'When.';
COMMENT ON COLUMN change_mark.oldest IS 'Oldest transaction that was under way.';
COMMENT ON COLUMN change_mark.next IS 'Every transaction that had begun has a lower number.';
COMMENT ON COLUMN change_mark.one IS 'Always true: all that a gateway may say of a row.';
INSERT INTO change_mark DEFAULT VALUES;

GRANT SELECT (arrived, ean, batch_id, changed) ON ingest_batch TO kluis_gateway;
GRANT INSERT (changed) ON ingest_batch TO kluis_ingest;
GRANT SELECT, INSERT, DELETE ON basis_day TO kluis_registrar, kluis_gateway;
GRANT SELECT, INSERT (one) ON change_mark TO kluis_gateway;

COMMENT ON COLUMN access_log.outcome IS '1 given, 2 given in part, 3 all withheld, 4 no relation, 5 failed after the decision, 6 refused, 7 unchanged (package audit).';

-- +goose Down
DROP TABLE change_mark, basis_day;
DROP INDEX consent_by_expiry;
DROP INDEX ingest_batch_by_arrival;
ALTER TABLE ingest_batch DROP COLUMN changed, DROP COLUMN arrived;
