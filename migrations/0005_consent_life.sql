-- +goose Up

-- Steps of the consent life cycle come through the gateway: it stores what a
-- cryptoserver sealed. A row that no seal key signed gives nobody anything; it
-- can only keep a metering point from being served until it is removed.
GRANT INSERT (ean, version, file, sealed_at) ON legal_file TO kluis_gateway;
GRANT INSERT, DELETE ON consent TO kluis_gateway;

-- What the gateway stores must be the next version: under the metering point
-- and the number that are sealed in it, and made of the version that is there.
-- Else one that took over a gateway could keep a sealed step back and store it
-- on top of a revocation, which it knows nothing of. The places are those of
-- package authz: 29 bytes of envelope, then the payload, which begins with a
-- fixed head (domain, commodity, EAN, version, time, digest of the payload
-- before). Signatures are not checked here.
-- +goose StatementBegin
CREATE FUNCTION legal_file_follows() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    envelope CONSTANT int := 29;
    before   bytea;
    size     bigint;
BEGIN
    IF octet_length(NEW.file) < envelope + 78
       OR substring(NEW.file FROM envelope + 22 FOR 8) <> int8send(NEW.ean)
       OR substring(NEW.file FROM envelope + 31 FOR 8) <> int8send(NEW.version) THEN
        RAISE EXCEPTION 'not the legal file of this metering point and version' USING ERRCODE = 'check_violation';
    END IF;
    SELECT l.file INTO before FROM legal_file l WHERE l.ean = NEW.ean AND l.version = NEW.version - 1;
    IF octet_length(before) >= envelope + 78 THEN
        size := (get_byte(before, 25)::bigint << 24) | (get_byte(before, 26) << 16) | (get_byte(before, 27) << 8) | get_byte(before, 28);
        IF sha256(substring(before FROM envelope + 1 FOR least(size, 2097152)::int)) = substring(NEW.file FROM envelope + 47 FOR 32) THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'does not follow on the version before it' USING ERRCODE = 'check_violation';
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION legal_file_follows() FROM PUBLIC;
CREATE TRIGGER legal_file_follows BEFORE INSERT ON legal_file
    FOR EACH ROW WHEN (current_user = 'kluis_gateway') EXECUTE FUNCTION legal_file_follows();

CREATE TABLE idempotency_key (
    gln        bigint      NOT NULL,
    key_digest bytea       NOT NULL CHECK (octet_length(key_digest) = 32),
    request    bytea       NOT NULL CHECK (octet_length(request) = 32),
    consent_id uuid        NOT NULL,
    stored_at  timestamptz NOT NULL DEFAULT now(),
    PRIMARY KEY (gln, key_digest)
);
COMMENT ON TABLE  idempotency_key IS 'Requests that changed something, by the key their caller gave, so that one sent again changes nothing. Stored with the change, in one transaction. Insert only.';
COMMENT ON COLUMN idempotency_key.gln IS 'GLN of the caller: keys of different callers never meet.';
COMMENT ON COLUMN idempotency_key.key_digest IS 'SHA-256 of the Idempotency-Key header.';
COMMENT ON COLUMN idempotency_key.request IS 'SHA-256 of what was asked: operation, consent and body, so that another request under the same key is refused.';
COMMENT ON COLUMN idempotency_key.consent_id IS 'Consent changed.';
COMMENT ON COLUMN idempotency_key.stored_at IS 'When it was stored.';
GRANT SELECT, INSERT (gln, key_digest, request, consent_id) ON idempotency_key TO kluis_gateway;

-- A consent is found by its id alone: the id names no metering point.
CREATE INDEX consent_by_id ON consent (consent_id, gln);
COMMENT ON COLUMN consent.state IS '1 requested, 2 active, 3 rejected, 4 revoked (package authz); that it expired or lapsed follows from times.';

-- Records are read back in pages: none is larger than one can be.
ALTER TABLE access_log
    ADD CONSTRAINT access_log_sizes CHECK (octet_length(record) BETWEEN 1 AND 262144 AND octet_length(receipt) <= 4096);

-- What was read of a metering point, latest first, for its customer.
CREATE INDEX access_log_by_time ON access_log (ean, recorded_at DESC, interaction_id);
GRANT SELECT (ean, recorded_at, interaction_id, gln, outcome, record, receipt) ON access_log TO kluis_gateway;
COMMENT ON COLUMN access_log.outcome IS '1 given, 2 given in part, 3 all withheld, 4 no relation, 5 failed after the decision, 6 refused (package audit).';

-- +goose Down
DROP TRIGGER legal_file_follows ON legal_file;
DROP FUNCTION legal_file_follows();
REVOKE INSERT (ean, version, file, sealed_at) ON legal_file FROM kluis_gateway;
REVOKE INSERT, DELETE ON consent FROM kluis_gateway;
REVOKE SELECT (ean, recorded_at, interaction_id, gln, outcome, record, receipt) ON access_log FROM kluis_gateway;
DROP TABLE idempotency_key;
DROP INDEX consent_by_id, access_log_by_time;
ALTER TABLE access_log DROP CONSTRAINT access_log_sizes;
