-- +goose Up

-- A supervisor suspends a supplier, or resumes it, through the gateway: it stores
-- what a cryptoserver sealed for an employee's token, with the access record, in
-- one transaction. A row that no seal key signed lets nobody in; it can only keep
-- a supplier out until it is removed.
GRANT INSERT (gln, version, record, sealed_at) ON supplier TO kluis_gateway;

-- As for legal files, what the gateway stores must be the next version, under the
-- GLN and the number that are sealed in it, and made of the version that is there;
-- and be an employee's, as the registrar's are not the gateway's to store. The
-- places are those of package authz: 29 bytes of envelope, then the payload, which
-- begins with a fixed head (domain, GLN, version, time, digest of the payload
-- before, kind of actor). Signatures are not checked here.
-- +goose StatementBegin
CREATE FUNCTION supplier_follows() RETURNS trigger LANGUAGE plpgsql SET search_path = pg_catalog, public, pg_temp AS $$
DECLARE
    envelope CONSTANT int := 29;
    before   bytea;
    size     bigint;
BEGIN
    IF octet_length(NEW.record) < envelope + 76
       OR substring(NEW.record FROM envelope + 20 FOR 8) <> int8send(NEW.gln)
       OR substring(NEW.record FROM envelope + 28 FOR 8) <> int8send(NEW.version)
       OR get_byte(NEW.record, envelope + 75) <> 4 THEN
        RAISE EXCEPTION 'not the record of this supplier and version, made by an employee' USING ERRCODE = 'check_violation';
    END IF;
    SELECT s.record INTO before FROM supplier s WHERE s.gln = NEW.gln AND s.version = NEW.version - 1;
    IF octet_length(before) >= envelope + 76 THEN
        size := (get_byte(before, 25)::bigint << 24) | (get_byte(before, 26) << 16) | (get_byte(before, 27) << 8) | get_byte(before, 28);
        IF sha256(substring(before FROM envelope + 1 FOR least(size, 2097152)::int)) = substring(NEW.record FROM envelope + 44 FOR 32) THEN
            RETURN NEW;
        END IF;
    END IF;
    RAISE EXCEPTION 'does not follow on the version before it' USING ERRCODE = 'check_violation';
END $$;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION supplier_follows() FROM PUBLIC;
CREATE TRIGGER supplier_follows BEFORE INSERT ON supplier
    FOR EACH ROW WHEN (current_user = 'kluis_gateway') EXECUTE FUNCTION supplier_follows();

-- How old the head of the audit log is, employees may see.
GRANT SELECT ON audit_checkpoint TO kluis_gateway;

-- +goose Down
DROP TRIGGER supplier_follows ON supplier;
DROP FUNCTION supplier_follows();
REVOKE INSERT (gln, version, record, sealed_at) ON supplier FROM kluis_gateway;
REVOKE SELECT ON audit_checkpoint FROM kluis_gateway;
