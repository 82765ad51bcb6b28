package server

import (
	"context"

	"kluis/openapi"
)

// Operations of the contract that have no route yet: replaced one by one.

func (s *Server) CreateConsent(context.Context, openapi.CreateConsentRequestObject) (openapi.CreateConsentResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) GetConsent(context.Context, openapi.GetConsentRequestObject) (openapi.GetConsentResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) GrantConsent(context.Context, openapi.GrantConsentRequestObject) (openapi.GrantConsentResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) RejectConsent(context.Context, openapi.RejectConsentRequestObject) (openapi.RejectConsentResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) RevokeConsent(context.Context, openapi.RevokeConsentRequestObject) (openapi.RevokeConsentResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) ListConsents(context.Context, openapi.ListConsentsRequestObject) (openapi.ListConsentsResponseObject, error) {
	return nil, fail(notFound, nil)
}

func (s *Server) GetAccessLog(context.Context, openapi.GetAccessLogRequestObject) (openapi.GetAccessLogResponseObject, error) {
	return nil, fail(notFound, nil)
}
