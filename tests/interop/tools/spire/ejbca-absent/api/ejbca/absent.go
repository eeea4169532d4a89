// Package ejbca stands where SPIRE's EJBCA client would be, so that spire-server can be built where that one module
// cannot be had. The suite runs SPIRE with its own certificate authority; every call here fails and says so.
package ejbca

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"net/http"
)

var errAbsent = errors.New("this spire-server was built without the EJBCA client (tests/interop/tools/spire)")

// Authenticator makes the HTTP client of a connection.
type Authenticator interface{ GetHTTPClient() (*http.Client, error) }

// MTLSAuthenticatorBuilder builds no authenticator.
type MTLSAuthenticatorBuilder struct{}

// NewMTLSAuthenticatorBuilder returns a builder whose Build fails.
func NewMTLSAuthenticatorBuilder() *MTLSAuthenticatorBuilder { return &MTLSAuthenticatorBuilder{} }

// WithClientCertificate ignores the certificate.
func (b *MTLSAuthenticatorBuilder) WithClientCertificate(*tls.Certificate) *MTLSAuthenticatorBuilder {
	return b
}

// WithCaCertificates ignores the certificates.
func (b *MTLSAuthenticatorBuilder) WithCaCertificates([]*x509.Certificate) *MTLSAuthenticatorBuilder {
	return b
}

// Build fails.
func (b *MTLSAuthenticatorBuilder) Build() (Authenticator, error) { return nil, errAbsent }

// Configuration holds what the plugin sets.
type Configuration struct{ Host string }

// NewConfiguration returns an empty configuration.
func NewConfiguration() *Configuration { return &Configuration{} }

// SetAuthenticator ignores the authenticator.
func (c *Configuration) SetAuthenticator(Authenticator) {}

// APIClient is never made.
type APIClient struct{ V1CertificateApi CertificateAPI }

// NewAPIClient fails.
func NewAPIClient(*Configuration) (*APIClient, error) { return nil, errAbsent }

// CertificateAPI answers nothing.
type CertificateAPI struct{}

// EnrollPkcs10Certificate returns a request whose Execute fails.
func (CertificateAPI) EnrollPkcs10Certificate(context.Context) ApiEnrollPkcs10CertificateRequest {
	return ApiEnrollPkcs10CertificateRequest{}
}

// ApiEnrollPkcs10CertificateRequest is a request that cannot be sent.
type ApiEnrollPkcs10CertificateRequest struct{}

// EnrollCertificateRestRequest ignores the body.
func (r ApiEnrollPkcs10CertificateRequest) EnrollCertificateRestRequest(EnrollCertificateRestRequest) ApiEnrollPkcs10CertificateRequest {
	return r
}

// Execute fails.
func (ApiEnrollPkcs10CertificateRequest) Execute() (*CertificateEnrollmentRestResponse, *http.Response, error) {
	return nil, nil, errAbsent
}

// EnrollCertificateRestRequest keeps nothing.
type EnrollCertificateRestRequest struct{}

// NewEnrollCertificateRestRequest returns an empty request.
func NewEnrollCertificateRestRequest() *EnrollCertificateRestRequest {
	return &EnrollCertificateRestRequest{}
}

func (*EnrollCertificateRestRequest) SetUsername(string)                 {}
func (*EnrollCertificateRestRequest) SetPassword(string)                 {}
func (*EnrollCertificateRestRequest) SetCertificateRequest(string)       {}
func (*EnrollCertificateRestRequest) SetCertificateAuthorityName(string) {}
func (*EnrollCertificateRestRequest) SetCertificateProfileName(string)   {}
func (*EnrollCertificateRestRequest) SetEndEntityProfileName(string)     {}
func (*EnrollCertificateRestRequest) SetIncludeChain(bool)               {}
func (*EnrollCertificateRestRequest) SetAccountBindingId(string)         {}

// CertificateEnrollmentRestResponse is empty.
type CertificateEnrollmentRestResponse struct{ CertificateChain []string }

func (*CertificateEnrollmentRestResponse) GetResponseFormat() string { return "" }
func (*CertificateEnrollmentRestResponse) GetCertificate() string    { return "" }

// GenericOpenAPIError is never returned.
type GenericOpenAPIError struct{}

func (*GenericOpenAPIError) Error() string { return errAbsent.Error() }

// Body is empty.
func (*GenericOpenAPIError) Body() []byte { return nil }
