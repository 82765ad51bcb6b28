-- +goose Up

-- An employee may show a customer that an entry of the access log is in the audit
-- log. For that the gateway needs the place and the salt of one record that it
-- names whole, and the hashes of the tree, which tell nothing of any record.
-- Salts it cannot list: they keep whoever holds somebody's proof from trying what
-- its neighbours are of. Runs as the owner, who alone may read them beside the
-- auditor.
-- +goose StatementBegin
CREATE FUNCTION access_leaf(of_ean bigint, of_interaction uuid) RETURNS TABLE (leaf_index bigint, salt bytea)
LANGUAGE sql STABLE SECURITY DEFINER SET search_path = pg_catalog, public, pg_temp
BEGIN ATOMIC
    SELECT l.index, a.salt
    FROM public.access_log a
    JOIN public.audit_leaf l ON l.id = a.interaction_id AND l.number = a.ean AND l.version = 0 AND l.kind = 1
    WHERE a.ean = of_ean AND a.interaction_id = of_interaction;
END;
-- +goose StatementEnd
REVOKE ALL ON FUNCTION access_leaf(bigint, uuid) FROM PUBLIC;
GRANT EXECUTE ON FUNCTION access_leaf(bigint, uuid) TO kluis_gateway;
GRANT SELECT ON audit_hash TO kluis_gateway;

-- +goose Down
REVOKE SELECT ON audit_hash FROM kluis_gateway;
DROP FUNCTION access_leaf(bigint, uuid);
