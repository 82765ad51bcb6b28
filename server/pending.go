package server

import (
	"context"
	"errors"

	"kluis/openapi"
)

// errPending is answered as a fault: the operation is in the contract, and not
// here yet.
var errPending = errors.New("this operation is not served yet")

// GetConnection answers GET /v1/metering-points/{ean}/connection.
func (s *Server) GetConnection(context.Context, openapi.GetConnectionRequestObject) (openapi.GetConnectionResponseObject, error) {
	return nil, fail(internalError, errPending)
}

// PreviewConsent answers POST /v1/consents/preview.
func (s *Server) PreviewConsent(context.Context, openapi.PreviewConsentRequestObject) (openapi.PreviewConsentResponseObject, error) {
	return nil, fail(internalError, errPending)
}

// GetAccessProof answers GET /v1/metering-points/{ean}/access-log/{interaction}/proof.
func (s *Server) GetAccessProof(context.Context, openapi.GetAccessProofRequestObject) (openapi.GetAccessProofResponseObject, error) {
	return nil, fail(internalError, errPending)
}
