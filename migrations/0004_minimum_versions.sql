-- +goose Up

-- The key custodian tells the cryptoservers by the control feed which versions
-- of sealed facts count no more. It finds what is new by the transaction that
-- stored it (arrived), as the auditor does: from the oldest one on that was
-- under way when it looked last, so that no late commit is missed.

CREATE TABLE fact_mark (
    one     boolean NOT NULL PRIMARY KEY DEFAULT true CHECK (one),
    arrived xid8    NOT NULL
);
COMMENT ON TABLE  fact_mark IS 'How far the key custodian has followed legal files and supplier records, one row; without it, it looks at all of them.';
COMMENT ON COLUMN fact_mark.one IS 'Always true.';
COMMENT ON COLUMN fact_mark.arrived IS 'What transactions before this one stored was looked at.';

-- It verifies the facts itself, so it reads them whole; it can store none.
GRANT SELECT ON supplier, legal_file, fact_mark TO kluis_custodian;
GRANT INSERT (arrived), UPDATE (arrived) ON fact_mark TO kluis_custodian;

-- +goose Down
DROP TABLE fact_mark;
REVOKE ALL ON supplier, legal_file FROM kluis_custodian;
