package main

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"os"
	"strings"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/credentials/insecure"
)

// connect opens a connection as the environment says: WFE_TLS_CA, WFE_TLS_CERT and WFE_TLS_KEY name
// PEM files, WFE_TOKEN is a token, and WFE_TOKEN_FILE a file with one.
func connect(target string) (*grpc.ClientConn, error) {
	transport, err := transportCredentials()
	if err != nil {
		return nil, err
	}
	options := []grpc.DialOption{
		grpc.WithTransportCredentials(transport),
		grpc.WithUnaryInterceptor(withDeadline),
	}
	if os.Getenv("WFE_TOKEN") != "" || os.Getenv("WFE_TOKEN_FILE") != "" {
		options = append(options, grpc.WithPerRPCCredentials(token{}))
	}
	return grpc.NewClient(target, options...)
}

func transportCredentials() (credentials.TransportCredentials, error) {
	ca, cert, key := os.Getenv("WFE_TLS_CA"), os.Getenv("WFE_TLS_CERT"), os.Getenv("WFE_TLS_KEY")
	if ca == "" {
		return insecure.NewCredentials(), nil
	}
	pem, err := os.ReadFile(ca)
	if err != nil {
		return nil, fmt.Errorf("WFE_TLS_CA: %w", err)
	}
	config := &tls.Config{RootCAs: x509.NewCertPool()}
	if !config.RootCAs.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("WFE_TLS_CA: no certificate in %s", ca)
	}
	if cert != "" {
		if _, err := tls.LoadX509KeyPair(cert, key); err != nil {
			return nil, fmt.Errorf("WFE_TLS_CERT, WFE_TLS_KEY: %w", err)
		}
		// Read again for each connection, because certificates are replaced.
		config.GetClientCertificate = func(*tls.CertificateRequestInfo) (*tls.Certificate, error) {
			pair, err := tls.LoadX509KeyPair(cert, key)
			return &pair, err
		}
	}
	return credentials.NewTLS(config), nil
}

// token adds the token to each call, read anew, because tokens are replaced.
type token struct{}

func (token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	current := os.Getenv("WFE_TOKEN")
	if file := os.Getenv("WFE_TOKEN_FILE"); file != "" {
		text, err := os.ReadFile(file)
		if err != nil {
			return nil, fmt.Errorf("WFE_TOKEN_FILE: %w", err)
		}
		current = strings.TrimSpace(string(text))
	}
	if current == "" {
		return nil, errors.New("the token is empty")
	}
	return map[string]string{"authorization": "Bearer " + current}, nil
}

// RequireTransportSecurity has gRPC refuse to send a token in plain text.
func (token) RequireTransportSecurity() bool { return true }
