variable "environment" {
  description = "staging or production: says every size below"
  type        = string

  validation {
    condition     = contains(["staging", "production"], var.environment)
    error_message = "environment must be staging or production."
  }
}

variable "region" {
  description = "Where everything is"
  type        = string
  default     = "us-west-2"
}

variable "cluster_name" {
  description = "Name of production's EKS cluster; staging's has -staging after it"
  type        = string
  default     = "enterprise-ai-cluster"
}

variable "kubernetes_version" {
  description = "Minor version of the control plane and the nodes"
  type        = string
  default     = "1.36"
}

variable "namespace" {
  description = "Kubernetes namespace of the services: their Pod Identity associations name it"
  type        = string
  default     = "ml-services"
}

variable "vpc_cidr" {
  description = "Addresses of the network: a /16"
  type        = string
  default     = "10.20.0.0/16"

  validation {
    condition     = can(cidrhost(var.vpc_cidr, 0)) && endswith(var.vpc_cidr, "/16")
    error_message = "vpc_cidr must be a /16."
  }
}

variable "api_cidrs" {
  description = "Addresses outside the network that may reach the cluster's API; none keeps it private"
  type        = list(string)
  default     = []

  validation {
    condition     = !contains(var.api_cidrs, "0.0.0.0/0") && !contains(var.api_cidrs, "::/0")
    error_message = "api_cidrs must name networks, not everybody."
  }
}

variable "admin_role_arns" {
  description = "IAM roles whose holders administer the cluster"
  type        = list(string)
  default     = []
}

variable "github_repository" {
  description = "owner/name of the repository whose deploy workflow may deploy here; none makes no role"
  type        = string
  default     = ""

  validation {
    condition     = var.github_repository == "" || can(regex("^[^/* ]+/[^/* ]+$", var.github_repository))
    error_message = "github_repository must be owner/name."
  }
}

variable "github_oidc_provider_arn" {
  description = "The account's OIDC provider of GitHub Actions, where it has one already; it can have one only"
  type        = string
  default     = ""
}
